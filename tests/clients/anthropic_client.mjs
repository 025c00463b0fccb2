// The real Anthropic client against a running server: LSERVE_URL is its address.
import assert from "node:assert/strict";
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({ baseURL: process.env.LSERVE_URL, apiKey: "sk-test", maxRetries: 0 });
const content = "The access code for cedar is 48213. Grass is green.\n\nWhat is the access code for cedar?";
const answer = "The access code for cedar is 48213.";
const base = { model: "needle", max_tokens: 200, temperature: 0, messages: [{ role: "user", content }] };
const tools = [{
  name: "get_code",
  description: "Looks a code up",
  input_schema: { type: "object", properties: { name: { enum: ["cedar", "oak"] } }, required: ["name"] },
}];
const called = { tools, tool_choice: { type: "tool", name: "get_code", disable_parallel_tool_use: true } };

const tests = {
  async message() {
    const reply = await client.messages.create(base);
    assert.equal(reply.content[0].text, answer);
    assert.equal(reply.stop_reason, "end_turn");
    assert.ok(reply.usage.input_tokens + reply.usage.cache_read_input_tokens > 20);
  },
  async countTokens() {
    const { input_tokens } = await client.messages.countTokens({ model: "needle", messages: base.messages });
    assert.ok(input_tokens > 20);
  },
  async stream() {
    let pieces = "";
    const stream = client.messages.stream(base).on("text", (text) => (pieces += text));
    const final = await stream.finalMessage();
    assert.equal(pieces, answer);
    assert.equal(final.content[0].text, answer);
    assert.ok(final.usage.output_tokens > 5);
  },
  async toolsThereAndBack() {
    const reply = await client.messages.create({ ...base, ...called });
    assert.equal(reply.stop_reason, "tool_use");
    const use = reply.content.at(-1);
    assert.ok(["cedar", "oak"].includes(use.input.name));
    const streamed = await client.messages.stream({ ...base, ...called }).finalMessage();
    assert.deepEqual(streamed.content.at(-1).input, use.input);
    const next = await client.messages.create({
      ...base, max_tokens: 5, tools,
      messages: [
        ...base.messages, { role: "assistant", content: reply.content },
        { role: "user", content: [{ type: "tool_result", tool_use_id: use.id, content: "48213" }] },
      ],
    });
    assert.equal(next.type, "message");
  },
  async stopSequence() {
    const reply = await client.messages.create({ ...base, stop_sequences: [" cedar"] });
    assert.equal(reply.stop_reason, "stop_sequence");
    assert.equal(reply.stop_sequence, " cedar");
  },
  async abort() {
    // A schema that allows one endless text: only leaving ends it soon.
    const stream = client.messages.stream({ ...base, max_tokens: 8000, temperature: 1,
      output_config: { format: { type: "json_schema", schema: { type: "string", minLength: 9000 } } } });
    stream.on("text", () => stream.abort());
    await assert.rejects(stream.finalMessage(), (e) => e instanceof Anthropic.APIUserAbortError);
  },
  async errors() {
    const ask = (more) => client.messages.create({ ...base, ...more });
    await assert.rejects(ask({ model: "claude-3" }), (e) => e instanceof Anthropic.NotFoundError);
    await assert.rejects(ask({ temperature: 9 }),
      (e) => e instanceof Anthropic.BadRequestError && e.error.error.type === "invalid_request_error");
    await assert.rejects(client.messages.create({ ...base, max_tokens: 10 ** 6 }, { timeout: 60000 }), (e) => e.status === 400);
  },
};

for (const [name, test] of Object.entries(tests)) {
  await test();
  console.log(`ok ${name}`);
}
