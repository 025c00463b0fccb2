// Bad input: each case ends with exit status 1 and one line on stderr that says what is wrong,
// with which value, what was expected and what to do; never with a crash.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdint>

#include "tests/cli/program.h"

namespace lserve {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

const std::string kModel = LS_SOURCE_DIR "/models/needle";

ProgramResult Lserve(std::vector<std::string> arguments, const ProgramInput& input = {}) {
  arguments.insert(arguments.begin(), LS_PROGRAM);
  return RunProgram(arguments, input);
}

// Each of `parts` must be in the one line.
void ExpectError(const std::vector<std::string>& arguments,
                 const std::vector<std::string>& parts,
                 const ProgramInput& input = {}) {
  SCOPED_TRACE(parts.front());
  const ProgramResult result = Lserve(arguments, input);
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_EQ(result.signal, 0);
  EXPECT_THAT(result.err, StartsWith("lserve: error: "));
  EXPECT_EQ(CountLines(result.err), 1u) << result.err;
  for (const std::string& part : parts) EXPECT_THAT(result.err, HasSubstr(part));
}

std::string Replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

// A copy of the bundled model with one file to break.
class BrokenModel : public ::testing::Test {
 protected:
  BrokenModel() {
    for (const char* name : {"config.json", "generation_config.json", "model.safetensors",
                             "tokenizer.json", "tokenizer_config.json"}) {
      scratch_.File(std::string("model/") + name, ReadFile(kModel + "/" + name));
    }
  }

  void Write(const std::string& name, const std::string& content) {
    scratch_.File("model/" + name, content);
  }
  void ExpectModelError(const std::vector<std::string>& parts) {
    ExpectError({"run", model(), "--prompt", "Hello", "--max-tokens", "1"}, parts);
  }
  std::string model() const { return scratch_ / "model"; }
  std::string weights() const { return ReadFile(kModel + "/model.safetensors"); }
  std::string config() const { return ReadFile(kModel + "/config.json"); }

  ScratchDir scratch_;
};

std::string LittleEndian(uint64_t value) {
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(value >> (8 * i)));
  return bytes;
}

// A safetensors file with this header and `data_bytes` zeros.
std::string Safetensors(const std::string& header, size_t data_bytes) {
  return LittleEndian(header.size()) + header + std::string(data_bytes, '\0');
}

TEST_F(BrokenModel, SafetensorsTruncated) {
  const std::string whole = weights();
  Write("model.safetensors", whole.substr(0, whole.size() / 2));
  ExpectModelError({"model.safetensors", "expected"});
  Write("model.safetensors", whole.substr(0, 5));
  ExpectModelError({"model.safetensors", "expected"});
  Write("model.safetensors", "");
  ExpectModelError({"model.safetensors", "expected"});
}

TEST_F(BrokenModel, SafetensorsLies) {
  const std::string tensor = R"({"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}})";
  Write("model.safetensors", LittleEndian(UINT64_MAX) + tensor);
  ExpectModelError({"model.safetensors", "header"});
  Write("model.safetensors", Safetensors(Replaced(tensor, "[0,16]", "[0,64]"), 16));
  ExpectModelError({"model.safetensors", "\"a\""});
  Write("model.safetensors", Safetensors(Replaced(tensor, "[2,2]", "[2,3]"), 16));
  ExpectModelError({"model.safetensors", "\"a\""});
  Write("model.safetensors",
        Safetensors(Replaced(tensor, "[2,2]", "[4611686018427387904,4611686018427387904]"), 16));
  ExpectModelError({"model.safetensors", "\"a\""});
  Write("model.safetensors", Safetensors(Replaced(tensor, "F32", "Q9"), 16));
  ExpectModelError({"model.safetensors", "Q9"});
  Write("model.safetensors",
        Safetensors(R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},)"
                    R"("b":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}})",
                    24));
  ExpectModelError({"model.safetensors", "expected"});
}

TEST_F(BrokenModel, ShardMissing) {
  std::filesystem::remove(model() + "/model.safetensors");
  ExpectModelError({"model", "safetensors", "expected"});
  Write("model.safetensors.index.json",
        R"({"weight_map":{"model.norm.weight":"model-00001-of-00002.safetensors"}})");
  ExpectModelError({"model-00001-of-00002.safetensors"});
}

TEST_F(BrokenModel, ConfigDoesNotMatchTheWeights) {
  Write("config.json", Replaced(config(), "\"vocab_size\": 4096", "\"vocab_size\": 5000"));
  ExpectModelError({"model.embed_tokens.weight", "[4096, 256]", "[5000, 256]"});
  Write("config.json", Replaced(config(), "\"num_hidden_layers\": 6", "\"num_hidden_layers\": 7"));
  ExpectModelError({"model.layers.6."});
}

TEST_F(BrokenModel, ConfigIsNoConfig) {
  Write("config.json", "{");
  ExpectModelError({"config.json"});
  Write("config.json", std::string(100000, '[') + std::string(100000, ']'));
  ExpectModelError({"config.json", "too deep"});
  Write("config.json", "{\"a\":" + std::string(100000, '['));
  ExpectModelError({"config.json"});
  Write("config.json", Replaced(config(), "LlamaForCausalLM", "MambaForCausalLM"));
  ExpectModelError({"MambaForCausalLM", "LlamaForCausalLM"});
  Write("config.json", Replaced(config(), "\"hidden_size\": 256", "\"hidden_size\": -256"));
  ExpectModelError({"hidden_size", "-256"});
  std::filesystem::remove(model() + "/config.json");
  ExpectModelError({"config.json"});
}

TEST_F(BrokenModel, TokenizerBroken) {
  const std::string tokenizer = ReadFile(kModel + "/tokenizer.json");
  Write("tokenizer.json", tokenizer.substr(0, tokenizer.size() / 2));
  ExpectModelError({"/tokenizer.json", "no valid JSON", "expected", "download"});
  Write("tokenizer.json", Replaced(tokenizer, "\"BPE\"", "\"Unigram\""));
  ExpectModelError({"tokenizer.json", "Unigram"});
  ExpectError({"tokenize", model(), "--text", "a"}, {"Unigram"});
  Write("tokenizer.json", tokenizer);
  Write("tokenizer_config.json", "{\"chat_template\": 7");
  ExpectModelError({"/tokenizer_config.json", "no valid JSON", "expected", "download"});
}

// No streaming heads is worth a note, but an error stays the only line.
TEST_F(BrokenModel, AnErrorIsTheOnlyLine) {
  const std::string ids = scratch_.File("ids.txt", "1 2 3");
  ExpectError({"run", model(), "--tokens", ids, "--logits-out", "/dev/full"}, {"/dev/full"});
  ExpectError({"run", model(), "--tokens", scratch_.File("bad.txt", "1 x")}, {"\"x\""});
  const ProgramResult good = Lserve({"run", model(), "--tokens", ids, "--max-tokens", "1"});
  EXPECT_EQ(good.exit_status, 0);
  EXPECT_THAT(good.err, HasSubstr("streaming_heads.json"));
}

// The stated positions fit the window, the scaled ones do not.
TEST_F(BrokenModel, SlidingWindowBehindScaledPositions) {
  std::string text = Replaced(config(), "LlamaForCausalLM", "MistralForCausalLM");
  text = Replaced(text, R"("rope_scaling": null)",
                  R"("sliding_window": 262144, "rope_scaling": {"type": "linear", "factor": 4.0})");
  Write("config.json", text);
  ExpectError({"run", model(), "--prompt", "a", "--max-model-len", "300000"},
              {"300000", "262144", "sliding_window", "lower it"});
}

TEST_F(BrokenModel, StreamingHeadsOfAnotherModel) {
  Write("streaming_heads.json", R"({"layers": 1, "kv_heads": 1, "score": [[0.5]], "kind": [[1]]})");
  ExpectModelError({"streaming_heads.json", "expected"});
  ExpectError({"run", model(), "--prompt", "a", "--streaming-heads", scratch_ / "nowhere.json"},
              {"nowhere.json"});
}

class BadInput : public ::testing::Test {
 protected:
  void ExpectDocumentError(const std::string& path, const std::vector<std::string>& parts) {
    ExpectError({"run", kModel, "--document", path, "--question", "What?"}, parts);
  }
  ScratchDir scratch_;
};

TEST_F(BadInput, Documents) {
  ExpectDocumentError(scratch_.File("latin1.txt", "Gr\xfc\xdf dich"),
                      {"latin1.txt", "byte 2", "UTF-8", "convert"});
  ExpectDocumentError(scratch_.File("empty.txt", ""), {"empty.txt", "empty", "expected text"});
  ExpectDocumentError(scratch_.File("blank.txt", " \n\t\n"), {"blank.txt", "empty"});
  ExpectDocumentError(scratch_ / "missing.txt", {"missing.txt", "No such file"});
  ExpectDocumentError(scratch_ / ".", {"directory"});
  ExpectDocumentError("", {"--document", "empty name"});
}

TEST_F(BadInput, DocumentLongerThanTheModel) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += "The schedule lists every task. ";
  const std::string path = scratch_.File("long.txt", text);
  ExpectError({"run", kModel, "--document", path, "--question", "What?", "--max-model-len", "2k"},
              {"long.txt", "tokens", "expected at most 2047", "shorten it"});
  ExpectError({"run", kModel, "--prompt", "a", "--max-model-len", "1G"}, {"max", "262144"});
}

TEST_F(BadInput, TokenFiles) {
  const auto expect = [&](const std::string& content, const std::vector<std::string>& parts) {
    ExpectError({"run", kModel, "--tokens", scratch_.File("ids.txt", content)}, parts);
  };
  expect("", {"ids.txt", "no token ids"});
  expect("1 2\n3 -4", {"ids.txt", "line 2", "token 4", "\"-4\"", "from 0 to 4095"});
  expect("1 4096", {"\"4096\"", "from 0 to 4095"});
  expect("1 99999999999999999999", {"99999999999999999999"});
  expect("1 0x10", {"\"0x10\""});
  expect("1,2", {"\"1,2\""});
  expect(std::string("1 2\0 3", 6), {"token 2"});
  ExpectError({"run", kModel, "--tokens", scratch_ / "missing"}, {"missing", "No such file"});
}

TEST_F(BadInput, ChatFiles) {
  const auto expect = [&](const std::string& content, const std::vector<std::string>& parts) {
    ExpectError({"tokenize", kModel, "--chat", scratch_.File("chat.json", content)}, parts);
  };
  expect("{", {"chat.json"});
  expect("7", {"chat.json", "expected an array of messages"});
  expect(std::string(100000, '['), {"chat.json"});
  expect(R"({"messages": [], "mesages": 1})", {"mesages"});
}

TEST_F(BadInput, OutputThatCanNotBeWritten) {
  const std::string tokens = scratch_.File("ids.txt", "4080 39 422");
  const auto expect = [&](const std::string& path, const std::vector<std::string>& parts) {
    ExpectError({"run", kModel, "--tokens", tokens, "--logits-out", path}, parts);
  };
  expect("/dev/full", {"/dev/full", "No space left on device"});
  EXPECT_TRUE(std::filesystem::exists("/dev/full"));
  expect(scratch_ / "no/such/folder.npy", {"No such file"});
  expect(scratch_ / ".", {"is a directory"});
  // What fails half way leaves nothing behind: the logits are a file by then, stdout is full.
  const std::string late = scratch_ / "late.npy";
  ProgramInput no_stdout;
  no_stdout.stdout_path = "/dev/full";
  ExpectError({"run", kModel, "--tokens", tokens, "--logits-out", late}, {"stdout"}, no_stdout);
  EXPECT_FALSE(std::filesystem::exists(late));
  EXPECT_FALSE(std::filesystem::exists(late + ".part"));

  ProgramInput full;
  full.stdout_path = "/dev/full";
  ExpectError({"run", kModel, "--tokens", tokens, "--max-tokens", "2", "--json"},
              {"stdout", "No space left on device"}, full);
}

// Linux's limits on a process are input as well.
ProgramResult Limited(const std::string& limits, const std::string& arguments) {
  return RunProgram({"/bin/sh", "-c",
                     limits + "; exec " + LS_PROGRAM + " run " + kModel +
                         " --prompt a --max-tokens 1 " + arguments});
}

TEST_F(BadInput, MemoryAndThreadsThatTheSystemRefuses) {
  ExpectError({"run", kModel, "--prompt", "a", "--kv-cache-bytes", "100000G"},
              {"KV cache", "cannot reserve", "--kv-cache-bytes"});
  const ProgramResult small = Limited("ulimit -v 400000", "--threads 1");
  EXPECT_EQ(small.exit_status, 0) << small.err;
  const ProgramResult threads = Limited("ulimit -v 1200000", "--threads 250 --kv-cache-bytes 20M");
  EXPECT_EQ(threads.exit_status, 1);
  EXPECT_THAT(threads.err, HasSubstr("--threads 250"));
  EXPECT_EQ(CountLines(threads.err), 1u) << threads.err;
}

TEST_F(BadInput, FilesThatAreNoFiles) {
  const std::string fifo = scratch_ / "fifo";
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  // A pipe where a checkpoint's file belongs is refused at once, not waited for.
  std::filesystem::create_directory(scratch_ / "model");
  std::filesystem::create_symlink(fifo, scratch_ / "model/config.json");
  ExpectError({"run", scratch_ / "model", "--prompt", "a"}, {"config.json", "not a regular file"});
  // A document may come through one.
  const ProgramResult piped = RunProgram(
      {"/bin/sh", "-c",
       std::string("echo 'The access code for cedar is 4711.' | ") + LS_PROGRAM + " run " + kModel +
           " --document /dev/stdin --question 'What is the access code for cedar?'"});
  EXPECT_EQ(piped.exit_status, 0) << piped.err;
  EXPECT_THAT(piped.out, HasSubstr("4711"));
}

TEST_F(BadInput, OneBadQuestionDoesNotEndTheSession) {
  ProgramInput input;
  input.stdin_text = "\xff\nWhat is the access code for cedar?\n";
  const std::string document = scratch_.File("doc.txt", "The access code for cedar is 4711.");
  const ProgramResult result = Lserve({"run", kModel, "--document", document}, input);
  EXPECT_EQ(result.exit_status, 1);
  EXPECT_THAT(result.err, HasSubstr("stdin: byte 0 is not UTF-8"));
  EXPECT_THAT(result.out, HasSubstr("4711"));
}

TEST_F(BadInput, QuestionsAndEmptyValues) {
  const std::string document = scratch_.File("doc.txt", "Some text.");
  ExpectError({"run", kModel, "--document", document, "--question", "a\xff"},
              {"--question", "byte 1", "UTF-8"});
  ExpectError(
      {"run", kModel, "--document", document, "--question", "What?", "--max-model-len", "8"},
      {"doc.txt with the question", "expected at most 7"});
  // An empty value is empty; it does not take the next argument.
  ExpectError({"run", kModel, "--document=", "--question", "x"}, {"--document", "empty name"});
  const ProgramResult empty =
      Lserve({"run", kModel, "--document", document, "--question=", "--json"});
  EXPECT_EQ(empty.exit_status, 2);
  EXPECT_THAT(empty.err, HasSubstr("--question: got an empty text"));
  const ProgramResult name = Lserve({"run", kModel, "--prompt", "a", "--logits-out="});
  EXPECT_EQ(name.exit_status, 2);
  EXPECT_THAT(name.err, HasSubstr("--logits-out: got an empty name"));
  const std::string ids = scratch_.File("ids.txt", "1 2 3");
  EXPECT_EQ(Lserve({"run", kModel, "--tokens", ids, "--logits-out", ids}).exit_status, 2);
  EXPECT_EQ(ReadFile(ids), "1 2 3");
  ProgramInput full;
  full.stdout_path = "/dev/full";
  ExpectError({"--help"}, {"stdout", "No space left"}, full);
}

TEST_F(BadInput, Devices) {
  ExpectError({"run", kModel, "--prompt", "a", "--device", "cuda"}, {"cuda"});
  ExpectError({"run", scratch_ / "nowhere", "--prompt", "a"}, {"nowhere"});
}

}  // namespace
}  // namespace lserve
