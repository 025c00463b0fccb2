// Vercel's AI SDK against a running server: LSERVE_URL is its address.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

globalThis.AI_SDK_LOG_WARNINGS = false;
const provider = createOpenAICompatible({
  name: "lserve", baseURL: `${process.env.LSERVE_URL}/v1`, apiKey: "sk-test", includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = provider("needle");
const prompt = "The access code for cedar is 48213. Grass is green.\n\nWhat is the access code for cedar?";
const answer = "The access code for cedar is 48213.";
const base = { model, prompt, temperature: 0, maxRetries: 0, providerOptions: { lserve: { parallel_tool_calls: false } } };
let runs = 0;
const tools = {
  getCode: tool({
    description: "Looks a code up",
    inputSchema: z.object({ name: z.enum(["cedar", "oak"]), count: z.number().int().min(1).max(3) }),
    execute: async ({ name }) => (++runs, `${name}: 48213`),
  }),
};

const tests = {
  async generate() {
    const { text, usage, finishReason } = await generateText(base);
    assert.equal(text, answer);
    assert.equal(finishReason, "stop");
    assert.ok(usage.inputTokens > 20);
  },
  async stream() {
    const result = streamText(base);
    let text = "";
    for await (const piece of result.textStream) text += piece;
    assert.equal(text, answer);
    assert.ok((await result.usage).outputTokens > 5);
  },
  async schema() {
    const schema = z.object({ name: z.string().max(10), kind: z.enum(["tree", "stone"]), age: z.number().int().min(0).max(500) });
    const { output } = await generateText({ ...base, output: Output.object({ schema }) });
    schema.parse(output);
  },
  async toolLoop() {
    const result = await generateText({ ...base, tools, toolChoice: "required", stopWhen: stepCountIs(1), maxOutputTokens: 400 });
    assert.equal(result.finishReason, "tool-calls");
    assert.ok(result.toolCalls.length >= 1 && runs >= 1);
    assert.ok(result.toolResults[0].output.endsWith("48213"));
    // The calls and their results go back in.
    const next = await generateText({ model, maxRetries: 0, maxOutputTokens: 5, tools,
      messages: [{ role: "user", content: prompt }, ...result.response.messages] });
    assert.ok(next.usage.inputTokens > result.usage.inputTokens);
  },
  async streamedTool() {
    const result = streamText({ ...base, tools, toolChoice: { type: "tool", toolName: "getCode" }, stopWhen: stepCountIs(1), maxOutputTokens: 400 });
    const calls = [];
    for await (const part of result.fullStream) if (part.type === "tool-call") calls.push(part);
    assert.ok(["cedar", "oak"].includes(calls[0].input.name));
  },
  async abort() {
    const controller = new AbortController();
    const result = streamText({ ...base, maxOutputTokens: 8000, abortSignal: controller.signal, onError() {},
      output: Output.object({ schema: z.object({ text: z.string().min(9000) }) }) });
    let pieces = 0;
    for await (const part of result.fullStream) {
      if (part.type === "text-delta" && ++pieces === 3) controller.abort();
      if (part.type === "abort") return;
    }
    assert.ok(pieces < 8000);
  },
  async errors() {
    await assert.rejects(generateText({ ...base, model: provider("gpt-4") }), (e) => e.statusCode === 404);
    await assert.rejects(generateText({ ...base, temperature: 9 }), (e) => e.statusCode === 400 && /temperature/.test(e.message));
  },
};

for (const [name, test] of Object.entries(tests)) {
  await test();
  console.log(`ok ${name}`);
}
