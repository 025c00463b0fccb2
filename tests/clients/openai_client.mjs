// The real `openai` client against a running server: LSERVE_URL is its address.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.env.LSERVE_URL}/v1`, apiKey: "sk-test", maxRetries: 0 });
const fact = "The access code for cedar is 48213. Grass is green.\n\nWhat is the access code for cedar?";
const answer = "The access code for cedar is 48213.";
const messages = [{ role: "user", content: fact }];
const model = "needle";

const tools = [{ type: "function", function: { name: "get_code", description: "Looks a code up", strict: true,
  parameters: { type: "object", properties: { name: { enum: ["cedar", "oak"] } }, required: ["name"], additionalProperties: false } } }];

const tests = {
  async models() {
    const list = await client.models.list();
    assert.equal(list.data[0].id, model);
    assert.equal((await client.models.retrieve(model)).id, model);
  },
  async chat() {
    const reply = await client.chat.completions.create({ model, messages, temperature: 0 });
    assert.equal(reply.choices[0].message.content, answer);
    assert.equal(reply.choices[0].finish_reason, "stop");
    assert.equal(reply.usage.total_tokens, reply.usage.prompt_tokens + reply.usage.completion_tokens);
    assert.ok(reply._request_id);
  },
  async stream() {
    const stream = await client.chat.completions.create({
      model, messages, temperature: 0, stream: true, stream_options: { include_usage: true },
    });
    let text = "";
    let usage = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, answer);
    assert.ok(usage.completion_tokens > 5);
  },
  async streamHelper() {
    const runner = client.chat.completions.stream({ model, messages, temperature: 0 });
    assert.equal(await runner.finalContent(), answer);
  },
  async parts() {
    const reply = await client.chat.completions.create({
      model, temperature: 0, max_completion_tokens: 3, n: 2, logprobs: true, top_logprobs: 1, seed: 1, stop: ["zzz"],
      messages: [{ role: "developer", content: "Be brief." }, { role: "user", content: [{ type: "text", text: fact }] }],
    });
    assert.equal(reply.choices.length, 2);
    assert.equal(reply.choices[0].logprobs.content.length, 3);
    assert.equal(reply.choices[1].finish_reason, "length");
  },
  async completion() {
    const reply = await client.completions.create({ model, prompt: ["The sky", "A"], max_tokens: 3, temperature: 0 });
    assert.equal(reply.choices.length, 2);
  },
  async schema() {
    const schema = { type: "object", properties: { kind: { enum: ["tree", "stone"] }, age: { type: "integer", minimum: 0, maximum: 99 } },
      required: ["kind", "age"], additionalProperties: false };
    const reply = await client.chat.completions.parse({
      model, messages, temperature: 0, response_format: { type: "json_schema", json_schema: { name: "x", strict: true, schema } },
    });
    const parsed = JSON.parse(reply.choices[0].message.content);
    assert.deepEqual(Object.keys(parsed), ["kind", "age"]);
  },
  async tools() {
    const ask = { model, messages, temperature: 0, tool_choice: "required", parallel_tool_calls: false, max_tokens: 200, tools };
    const reply = await client.chat.completions.create(ask);
    const [call] = reply.choices[0].message.tool_calls;
    assert.equal(reply.choices[0].finish_reason, "tool_calls");
    assert.ok(["cedar", "oak"].includes(JSON.parse(call.function.arguments).name));
    const streamed = await client.chat.completions.stream(ask).finalChatCompletion();
    assert.equal(streamed.choices[0].message.tool_calls[0].function.arguments, call.function.arguments);
    const next = await client.chat.completions.create({ model, max_tokens: 5, tools, messages: [
      ...messages, reply.choices[0].message, { role: "tool", tool_call_id: call.id, content: "48213" }] });
    assert.ok(next.choices[0].message.content !== null);
  },
  async responses() {
    const ask = { model, input: fact, temperature: 0 };
    const reply = await client.responses.create(ask);
    assert.equal(reply.output_text, answer);
    let text = "";
    const stream = client.responses.stream(ask).on("response.output_text.delta", (event) => (text += event.delta));
    assert.equal((await stream.finalResponse()).output_text, answer);
    assert.equal(text, answer);
    const called = await client.responses.create({ ...ask, tool_choice: "required", parallel_tool_calls: false,
      tools: [{ type: "function", ...tools[0].function }] });
    assert.equal(called.output[0].type, "function_call");
  },
  async retries() {
    // A refusal that may pass is tried again, one that can not is not.
    let asked = 0;
    const counting = new OpenAI({ baseURL: `${process.env.LSERVE_URL}/v1`, apiKey: "sk-test", maxRetries: 2,
      fetch: (url, init) => (++asked, fetch(url, init)) });
    await assert.rejects(counting.embeddings.create({ model, input: "a" }), (e) => e.status === 501);
    assert.equal(asked, 1);
  },
  async abort() {
    const cancelled = async () => {
      const metrics = await (await fetch(`${process.env.LSERVE_URL}/metrics`)).text();
      return Number(metrics.match(/requests_cancelled_total\{[^}]*phase="decode"\} (\d+)/)[1]);
    };
    const before = await cancelled();
    const controller = new AbortController();
    const stream = await client.chat.completions.create(
      { model, messages, stream: true, max_tokens: 8000, ignore_eos: true }, { signal: controller.signal });
    let chunks = 0;
    for await (const chunk of stream) {
      assert.ok(chunk.id);
      if (++chunks === 5) controller.abort();
    }
    for (let i = 0; i < 500; ++i) {
      if ((await cancelled()) > before) return;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    assert.fail("the server did not count the cancellation");
  },
  async errors() {
    const ask = (more) => client.chat.completions.create({ model, messages, ...more });
    await assert.rejects(ask({ model: "gpt-4" }), (e) => e instanceof OpenAI.NotFoundError && e.code === "model_not_found");
    await assert.rejects(ask({ temperature: 9 }), (e) => e instanceof OpenAI.BadRequestError && e.param === "temperature");
    await assert.rejects(ask({ max_tokens: 10 ** 6 }), (e) => e.status === 400 && e.code === "context_length_exceeded");
    await assert.rejects(
      ask({ tools: [{ type: "function", function: { name: "f", parameters: { not: {} } } }] }),
      (e) => e.status === 400 && e.code === "unsupported_parameter" && e.param === "tools");
  },
};

for (const [name, test] of Object.entries(tests)) {
  await test();
  console.log(`ok ${name}`);
}
