// What each JavaScript client does with a live server of ours; calls.py says what a call returns.
// Runs where node_modules is: `node calls.mjs JSON` prints JSON.
import { createRequire } from "node:module";
import { createBaseten } from "@ai-sdk/baseten";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { InferenceClient } from "@huggingface/inference";
import { OpenAIEmbeddings } from "@langchain/openai";
import { CohereClient, CohereClientV2 } from "cohere-ai";
import { embedMany } from "ai";
import { Ollama } from "ollama";
import OpenAI from "openai";

const require = createRequire(import.meta.url);
const { PerformanceClient } = require("@basetenlabs/performance-client");
const given = JSON.parse(process.argv[2]);
const { urls, bases, texts, query, documents, people } = given;

const openai = (options = {}) =>
  new OpenAI({ baseURL: urls.embedding + "/v1", apiKey: "k", maxRetries: 0, ...options });
const hub = new InferenceClient();

const calls = {
  async js_openai() {
    const answer = await openai().embeddings.create({ model: "any", input: texts });
    return { vectors: answer.data.map((item) => Array.from(item.embedding)) };
  },
  async js_openai_float() {
    const body = { model: "any", input: texts[0], encoding_format: "float" };
    return { vector: (await openai().embeddings.create(body)).data[0].embedding };
  },
  async js_openai_batch() {
    const client = openai();
    const row = (text, i) => ({ custom_id: `${i}`, method: "POST", url: "/v1/embeddings", body: { input: text } });
    const lines = texts.map((text, i) => JSON.stringify(row(text, i))).join("\n");
    const file = await client.files.create({ file: new File([lines], "a.jsonl"), purpose: "batch" });
    const wanted = { input_file_id: file.id, endpoint: "/v1/embeddings", completion_window: "24h" };
    let batch = await client.batches.create(wanted);
    while (["validating", "in_progress", "finalizing"].includes(batch.status)) {
      await new Promise((resolve) => setTimeout(resolve, 100));
      batch = await client.batches.retrieve(batch.id);
    }
    const answers = (await (await client.files.content(batch.output_file_id)).text()).trim().split("\n");
    return { vectors: answers.map((answer) => JSON.parse(answer).response.body.data[0].embedding) };
  },
  async js_openai_says_what_was_wrong() {
    try {
      await openai().embeddings.create({ model: "any", input: "a", dimensions: 9999 });
    } catch (error) {
      return { message: error.message };
    }
    throw new Error("no error");
  },
  async js_langchain_openai() {
    const configuration = { baseURL: urls.embedding + "/v1" };
    const embeddings = new OpenAIEmbeddings({ model: "any", apiKey: "k", configuration });
    return { vectors: await embeddings.embedDocuments(texts) };
  },
  async js_huggingface_feature_extraction() {
    const vectors = await hub.featureExtraction({ endpointUrl: urls.embedding, inputs: texts });
    return { vectors };
  },
  async js_huggingface_sentence_similarity() {
    const inputs = { source_sentence: texts[0], sentences: texts.slice(1) };
    return { cosines: await hub.sentenceSimilarity({ endpointUrl: urls.embedding, inputs }) };
  },
  async js_huggingface_text_classification() {
    const labels = [];
    for (const inputs of documents) {
      const found = await hub.textClassification({ endpointUrl: bases.classifier, inputs, parameters: {} });
      labels.push(found[0].label);
    }
    return { labels };
  },
  async js_cohere_v1_rerank() {
    const client = new CohereClient({ environment: urls.reranker, token: "k" });
    const answer = await client.rerank({ model: "any", query, documents });
    return { ranks: answer.results.map((item) => [item.index, item.relevanceScore]) };
  },
  async js_cohere_v2_rerank() {
    const client = new CohereClientV2({ environment: urls.reranker, token: "k" });
    const answer = await client.rerank({ model: "any", query, documents, topN: 2 });
    return { ranks: answer.results.map((item) => [item.index, item.relevanceScore]) };
  },
  async js_cohere_v2_embed() {
    const client = new CohereClientV2({ environment: urls.embedding, token: "k" });
    const body = { model: "any", texts, inputType: "search_document", embeddingTypes: ["float"] };
    return { vectors: (await client.embed(body)).embeddings.float };
  },
  async js_ollama_embed() {
    const client = new Ollama({ host: urls.embedding });
    const { models } = await client.list();
    if (models.length === 0) throw new Error("no model");
    return { vectors: (await client.embed({ model: "any", input: texts })).embeddings };
  },
  async js_ollama_embeddings() {
    const client = new Ollama({ host: urls.embedding });
    return { vector: (await client.embeddings({ model: "any", prompt: texts[0] })).embedding };
  },
  async js_ai_sdk_openai_compatible() {
    const provider = createOpenAICompatible({ name: "bei", baseURL: urls.embedding + "/v1", apiKey: "k" });
    const { embeddings } = await embedMany({ model: provider.embeddingModel("any"), values: texts });
    return { vectors: embeddings };
  },
  async js_ai_sdk_baseten() {
    const provider = createBaseten({ apiKey: "k", modelURL: urls.embedding + "/models/sync/v1" });
    const { embeddings } = await embedMany({ model: provider.embeddingModel(), values: texts });
    return { vectors: embeddings };
  },
  async js_baseten_embed() {
    const answer = await new PerformanceClient(urls.embedding, "k").embed(texts, "any");
    return { vectors: answer.data.map((item) => item.embedding) };
  },
  async js_baseten_rerank() {
    const answer = await new PerformanceClient(urls.reranker, "k").rerank(query, documents);
    return { ranks: answer.data.map((item) => [item.index, item.score]) };
  },
  async js_baseten_classify() {
    const answer = await new PerformanceClient(urls.classifier, "k").classify(documents);
    return { labels: answer.data.map((rows) => rows[0].label) };
  },
  async js_baseten_batch_post_predict_tokens() {
    const payloads = people.map((text) => ({ inputs: [[text]], aggregation_strategy: "simple" }));
    const answer = await new PerformanceClient(urls.pii, "k").batchPost("/predict_tokens", payloads);
    return { spans: answer.data.map((body) => body[0].map((entity) => [entity.start, entity.end])) };
  },
};

const found = {};
for (const [name, call] of Object.entries(calls)) {
  try {
    found[name] = await call();
  } catch (error) {
    found[name] = { failed: `${error.stack ?? error}` };
  }
}
process.stdout.write("\n" + JSON.stringify(found) + "\n", () => process.exit(0));
