// LangChain's OpenAI classes against a running server: LSERVE_URL is its address.
import assert from "node:assert/strict";
import { AIMessage, HumanMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI } from "@langchain/openai";
import { z } from "zod";

const make = (more) => new ChatOpenAI({
  model: "needle", temperature: 0, apiKey: "sk-test", maxRetries: 0,
  configuration: { baseURL: `${process.env.LSERVE_URL}/v1` }, ...more,
});
const model = make();
const question = "The access code for cedar is 48213. Grass is green.\n\nWhat is the access code for cedar?";
const answer = "The access code for cedar is 48213.";
const getCode = tool(async ({ name }) => `${name}: 48213`, {
  name: "get_code", description: "Looks a code up", schema: z.object({ name: z.enum(["cedar", "oak"]) }),
});

const tests = {
  async invoke() {
    const reply = await model.invoke(question);
    assert.equal(reply.content, answer);
    assert.ok(reply.usage_metadata.total_tokens > 20);
  },
  async stream() {
    let text = "";
    for await (const chunk of await model.stream(question)) text += chunk.content;
    assert.equal(text, answer);
  },
  async structured() {
    const schema = z.object({ kind: z.enum(["tree", "stone"]), tags: z.array(z.enum(["a", "b"])).max(2) });
    for (const method of ["jsonSchema", "functionCalling"]) {
      schema.parse(await model.withStructuredOutput(schema, { name: "thing", method }).invoke(question));
    }
  },
  async tools() {
    const bound = model.bindTools([getCode], { tool_choice: "get_code", parallel_tool_calls: false });
    const reply = await bound.invoke(question);
    assert.ok(["cedar", "oak"].includes(reply.tool_calls[0].args.name));
    const result = await getCode.invoke(reply.tool_calls[0]);
    const next = await make({ maxTokens: 5 }).bindTools([getCode])
      .invoke([new HumanMessage(question), reply, result]);
    assert.ok(next instanceof AIMessage && result instanceof ToolMessage);
  },
  async responses() {
    const reply = await make({ useResponsesApi: true }).invoke(question);
    assert.equal(reply.text, answer);
  },
  async abort() {
    const controller = new AbortController();
    const endless = make({ maxTokens: 8000, modelKwargs: { ignore_eos: true } });
    let pieces = 0;
    await assert.rejects(async () => {
      for await (const chunk of await endless.stream(question, { signal: controller.signal })) {
        if (chunk.content && ++pieces === 3) controller.abort();
      }
    });
    assert.ok(pieces < 100);
  },
  async errors() {
    await assert.rejects(make({ model: "gpt-4" }).invoke("a"), (e) => e.status === 404);
    await assert.rejects(make({ temperature: 9 }).invoke("a"), (e) => e.status === 400);
  },
};

for (const [name, test] of Object.entries(tests)) {
  await test();
  console.log(`ok ${name}`);
}
