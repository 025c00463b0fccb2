// LongBench's prompts and answer lengths, as its repository publishes them (config/dataset2prompt
// .json, dataset2maxlen.json): a figure is comparable only under the same wording. Data, no code.
#include "eval/longbench.h"

namespace lserve {
namespace {

constexpr const char kPassages[] =
    "Answer the question based on the given passages. Only give me the answer and "
    "do not output any other words.\n\nThe following are given passages.\n{context}\n\nAn"
    "swer the question based on the given passages. Only give me the answer and do "
    "not output any other words.\n\nQuestion: {input}\nAnswer:";

constexpr const char kNarrativeqa[] =
    "You are given a story, which can be either a novel or a movie script, and a "
    "question. Answer the question as concisely as you can, using a single phrase "
    "if possible. Do not provide any explanation.\n\nStory: {context}\n\nNow, answer "
    "the question based on the story as concisely as you can, using a single phrase "
    "if possible. Do not provide any explanation.\n\nQuestion: {input}\n\nAnswer:";

constexpr const char kQasper[] =
    "You are given a scientific article and a question. Answer the question as concisely "
    "as you can, using a single phrase or sentence if possible. If the question cannot "
    "be answered based on the information in the article, write \"unanswerable\". "
    "If the question is a yes/no question, answer \"yes\", \"no\", or \"unanswerable\". "
    "Do not provide any explanation.\n\nArticle: {context}\n\n Answer the question "
    "based on the above article as concisely as you can, using a single phrase or "
    "sentence if possible. If the question cannot be answered based on the information "
    "in the article, write \"unanswerable\". If the question is a yes/no question, "
    "answer \"yes\", \"no\", or \"unanswerable\". Do not provide any explanation.\n\nQues"
    "tion: {input}\n\nAnswer:";

constexpr const char kMultifieldqaEn[] =
    "Read the following text and answer briefly.\n\n{context}\n\nNow, answer the "
    "following question based on the above text, only give me the answer and do not "
    "output any other words.\n\nQuestion: {input}\nAnswer:";

constexpr const char kMultifieldqaZh[] =
    "\u9605\u8bfb\u4ee5\u4e0b\u6587\u5b57\u5e76\u7528\u4e2d\u6587\u7b80\u77ed\u56de"
    "\u7b54\uff1a\n\n{context}\n\n\u73b0\u5728\u8bf7\u57fa\u4e8e\u4e0a\u9762\u7684"
    "\u6587\u7ae0\u56de\u7b54\u4e0b\u9762\u7684\u95ee\u9898\uff0c\u53ea\u544a\u8bc9"
    "\u6211\u7b54\u6848\uff0c\u4e0d\u8981\u8f93\u51fa\u4efb\u4f55\u5176\u4ed6\u5b57"
    "\u8bcd\u3002\n\n\u95ee\u9898\uff1a{input}\n\u56de\u7b54\uff1a";

constexpr const char kDureader[] =
    "\u8bf7\u57fa\u4e8e\u7ed9\u5b9a\u7684\u6587\u7ae0\u56de\u7b54\u4e0b\u8ff0\u95ee"
    "\u9898\u3002\n\n\u6587\u7ae0\uff1a{context}\n\n\u8bf7\u57fa\u4e8e\u4e0a\u8ff0"
    "\u6587\u7ae0\u56de\u7b54\u4e0b\u9762\u7684\u95ee\u9898\u3002\n\n\u95ee\u9898"
    "\uff1a{input}\n\u56de\u7b54\uff1a";

constexpr const char kGovReport[] =
    "You are given a report by a government agency. Write a one-page summary of the "
    "report.\n\nReport:\n{context}\n\nNow, write a one-page summary of the report.\n\nSum"
    "mary:";

constexpr const char kQmsum[] =
    "You are given a meeting transcript and a query containing a question or instruction."
    " Answer the query in one or more sentences.\n\nTranscript:\n{context}\n\nNow, "
    "answer the query based on the above meeting transcript in one or more sentences.\n\n"
    "Query: {input}\nAnswer:";

constexpr const char kMultiNews[] =
    "You are given several news passages. Write a one-page summary of all news. \n\nNews:"
    "\n{context}\n\nNow, write a one-page summary of all the news.\n\nSummary:";

constexpr const char kVcsum[] =
    "\u4e0b\u9762\u6709\u4e00\u6bb5\u4f1a\u8bae\u8bb0\u5f55\uff0c\u8bf7\u4f60\u9605"
    "\u8bfb\u540e\uff0c\u5199\u4e00\u6bb5\u603b\u7ed3\uff0c\u603b\u7ed3\u4f1a\u8bae"
    "\u7684\u5185\u5bb9\u3002\n\u4f1a\u8bae\u8bb0\u5f55\uff1a\n{context}\n\n\u4f1a"
    "\u8bae\u603b\u7ed3\uff1a";

constexpr const char kTrec[] =
    "Please determine the type of the question below. Here are some examples of questions"
    ".\n\n{context}\n{input}";

constexpr const char kTriviaqa[] =
    "Answer the question based on the given passage. Only give me the answer and "
    "do not output any other words. The following are some examples.\n\n{context}\n\n{inp"
    "ut}";

constexpr const char kSamsum[] =
    "Summarize the dialogue into a few short sentences. The following are some examples.\n"
    "\n{context}\n\n{input}";

constexpr const char kLsht[] =
    "\u8bf7\u5224\u65ad\u7ed9\u5b9a\u65b0\u95fb\u7684\u7c7b\u522b\uff0c\u4e0b\u9762"
    "\u662f\u4e00\u4e9b\u4f8b\u5b50\u3002\n\n{context}\n{input}";

constexpr const char kPassageCount[] =
    "There are some paragraphs below sourced from Wikipedia. Some of them may be "
    "duplicates. Please carefully read these paragraphs and determine how many unique "
    "paragraphs there are after removing duplicates. In other words, how many non-repeati"
    "ng paragraphs are there in total?\n\n{context}\n\nPlease enter the final count "
    "of unique paragraphs after removing duplicates. The output format should only "
    "contain the number, such as 1, 2, 3, and so on.\n\nThe final answer is: ";

constexpr const char kPassageRetrievalEn[] =
    "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine "
    "which paragraph the abstract is from.\n\n{context}\n\nThe following is an abstract.\n"
    "\n{input}\n\nPlease enter the number of the paragraph that the abstract is from. "
    "The answer format must be like \"Paragraph 1\", \"Paragraph 2\", etc.\n\nThe "
    "answer is: ";

constexpr const char kPassageRetrievalZh[] =
    "\u4ee5\u4e0b\u662f\u82e5\u5e72\u6bb5\u843d\u6587\u5b57\uff0c\u4ee5\u53ca\u5176"
    "\u4e2d\u4e00\u4e2a\u6bb5\u843d\u7684\u6458\u8981\u3002\u8bf7\u786e\u5b9a\u7ed9"
    "\u5b9a\u7684\u6458\u8981\u51fa\u81ea\u54ea\u4e00\u6bb5\u3002\n\n{context}\n\n\u4e0b"
    "\u9762\u662f\u4e00\u4e2a\u6458\u8981\n\n{input}\n\n\u8bf7\u8f93\u5165\u6458\u8981"
    "\u6240\u5c5e\u6bb5\u843d\u7684\u7f16\u53f7\u3002\u7b54\u6848\u683c\u5f0f\u5fc5"
    "\u987b\u662f\"\u6bb5\u843d1\"\uff0c\"\u6bb5\u843d2\"\u7b49\u683c\u5f0f\n\n\u7b54"
    "\u6848\u662f\uff1a";

constexpr const char kLcc[] =
    "Please complete the code given below. \n{context}Next line of code:\n";

constexpr const char kRepobenchP[] =
    "Please complete the code given below. \n{context}{input}Next line of code:\n";

constexpr LongBenchDataset kDatasets[] = {
    {"narrativeqa", kNarrativeqa, 128, LongBenchMetric::kQaF1},
    {"qasper", kQasper, 128, LongBenchMetric::kQaF1},
    {"multifieldqa_en", kMultifieldqaEn, 64, LongBenchMetric::kQaF1},
    {"multifieldqa_zh", kMultifieldqaZh, 64, LongBenchMetric::kQaF1Chinese},
    {"hotpotqa", kPassages, 32, LongBenchMetric::kQaF1},
    {"2wikimqa", kPassages, 32, LongBenchMetric::kQaF1},
    {"musique", kPassages, 32, LongBenchMetric::kQaF1},
    {"dureader", kDureader, 128, LongBenchMetric::kRougeLChinese},
    {"gov_report", kGovReport, 512, LongBenchMetric::kRougeL},
    {"qmsum", kQmsum, 512, LongBenchMetric::kRougeL},
    {"multi_news", kMultiNews, 512, LongBenchMetric::kRougeL},
    {"vcsum", kVcsum, 512, LongBenchMetric::kRougeLChinese},
    {"trec", kTrec, 64, LongBenchMetric::kClassification, false, true},
    {"triviaqa", kTriviaqa, 32, LongBenchMetric::kQaF1, false, true},
    {"samsum", kSamsum, 128, LongBenchMetric::kRougeL, false, true},
    {"lsht", kLsht, 64, LongBenchMetric::kClassification, false, true},
    {"passage_count", kPassageCount, 32, LongBenchMetric::kCount},
    {"passage_retrieval_en", kPassageRetrievalEn, 32, LongBenchMetric::kRetrieval},
    {"passage_retrieval_zh", kPassageRetrievalZh, 32, LongBenchMetric::kRetrievalChinese},
    {"lcc", kLcc, 64, LongBenchMetric::kCode, false, false},
    {"repobench-p", kRepobenchP, 64, LongBenchMetric::kCode, false, false},
};

}  // namespace

std::span<const LongBenchDataset> LongBenchDatasets() {
  return kDatasets;
}

}  // namespace lserve
