// Fields that the bodies of several protocols have, or whose refusal reads alike. Used by the
// bodies' parsers only.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "server/body_fields.h"
#include "server/openai_types.h"

namespace lserve {

// null, false, "", [], {} and 0 ask for nothing.
bool AsksForNothing(const Json& value);
ApiError NotImplemented(std::string_view name, std::string_view instead);

// temperature, top_p, top_k, penalties, seed, logit_bias.
void ReadSampling(BodyFields& fields, GenerationParams* out);
// Our own "sparse".
void ReadSparse(BodyFields& fields, GenerationParams* out);

// vLLM's cache_salt and priority: what a request shares, and when it is served.
void ReadServing(BodyFields& fields, GenerationParams* out);

// What other servers read beside text: tensors, and files that they fetch. An error, by name.
void RefuseOtherInputs(BodyFields& fields);

// The text of a message's content: a string, null, or parts of text; the names of their types
// differ. Nothing, and `why`, if it is something else.
std::optional<std::string> ContentText(const Json* content, std::string* why);

// What is given beside a format or tools, which say themselves where an answer ends.
void CheckEndsItself(BodyFields& fields, const char* name, const GenerationParams& params);

}  // namespace lserve
