// The real `openai` client against a running server: LSERVE_URL is its address.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: `${process.env.LSERVE_URL}/v1`, apiKey: "sk-test", maxRetries: 0 });
const fact = "The access code for cedar is 48213. Grass is green.\n\nWhat is the access code for cedar?";
const answer = "The access code for cedar is 48213.";
const messages = [{ role: "user", content: fact }];
const model = "needle";

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
  async abort() {
    const controller = new AbortController();
    const stream = await client.chat.completions.create(
      { model, messages, stream: true, max_tokens: 8000, ignore_eos: true }, { signal: controller.signal });
    let chunks = 0;
    for await (const chunk of stream) {
      assert.ok(chunk.id);
      if (++chunks === 5) controller.abort();
    }
    for (let i = 0; i < 500; ++i) {
      const metrics = await (await fetch(`${process.env.LSERVE_URL}/metrics`)).text();
      if (/requests_cancelled_total\{[^}]*phase="decode"\} 1/.test(metrics)) return;
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
      ask({ tools: [{ type: "function", function: { name: "f", parameters: {} } }] }),
      (e) => e.status === 400 && e.code === "unsupported_parameter" && e.param === "tools");
  },
};

for (const [name, test] of Object.entries(tests)) {
  await test();
  console.log(`ok ${name}`);
}
