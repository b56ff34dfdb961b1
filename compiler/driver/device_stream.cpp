// Run a streaming file frame by frame, and print the answer so far and the time of each step (docs/streaming.md).
//   g++ -std=c++17 -O2 stream.cpp -I$ORT/include -L$ORT/lib -lonnxruntime -Wl,-rpath,$ORT/lib -o stream
//   ./stream model.onnx FRAMES [REPEAT [SCORES]]  # an image needs all steps as REPEAT; SCORES gets those of every step
// ORT is a release of ONNX Runtime. FRAMES is raw float32, C x H x W, or uint8, H x W x C, for each frame; - is stdin.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

// Return what follows each mark in a text, up to the next mark.
std::vector<std::string> after(const std::string& text, const std::string& mark) {
  std::vector<std::string> parts;
  for (size_t start = text.find(mark); start != std::string::npos;) {
    const size_t end = text.find(mark, start += mark.size());
    parts.push_back(text.substr(start, end == std::string::npos ? end : end - start));
    start = end;
  }
  return parts;
}

// Return the number under a key of a JSON object; 0 if there is none.
double number(const std::string& object, const std::string& key) {
  const auto found = after(object, '"' + key + "\": ");
  return found.empty() ? 0 : std::stod(found[0]);
}

// Return the numbers in a list under a key, up to a bracket or two; null is NaN, which no margin reaches.
std::vector<double> numbers(const std::string& object, const std::string& key, const std::string& end) {
  std::vector<double> values;
  for (std::string text : after(object, '"' + key + "\": ")) {
    std::replace_if(text.begin(), text.end(), [](char c) { return c == '[' || c == ','; }, ' ');
    std::istringstream list(text.substr(0, text.find(end)));
    for (std::string each; list >> each;) values.push_back(std::strtod(each == "null" ? "nan" : each.c_str(), nullptr));
  }
  return values;
}

// Return the difference between the two largest probabilities of a softmax.
double margin(std::vector<double> scores) {
  std::sort(scores.rbegin(), scores.rend());
  double sum = 0;
  for (double score : scores) sum += std::exp(score - scores[0]);
  return scores.size() < 2 ? 1 : (1 - std::exp(scores[1] - scores[0])) / sum;
}

int main(int count, char** words) try {
  const int repeat = count > 3 ? std::atoi(words[3]) : 1;
  if (count < 3 || repeat < 1) throw std::invalid_argument("./stream model.onnx FRAMES [REPEAT [SCORES]]");
  FILE* const frames = std::string(words[2]) == "-" ? stdin : std::fopen(words[2], "rb");
  FILE* const kept = count > 4 ? std::fopen(words[4], "wb") : nullptr;
  if (!frames || (count > 4 && !kept)) throw std::runtime_error(std::string("cannot open ") + words[frames ? 4 : 2]);
  Ort::Env env(ORT_LOGGING_LEVEL_FATAL, "stream");
  Ort::Session session(env, words[1], Ort::SessionOptions());
  Ort::AllocatorWithDefaultOptions allocator;
  const auto metadata = [&](const char* key) {
    const auto text = session.GetModelMetadata().LookupCustomMetadataMapAllocated(key, allocator);
    return std::string(text ? text.get() : "");
  };
  const std::string states = metadata("svitc.states"), rule = metadata("early_exit"), type = metadata("image.dtype");
  const auto limits = numbers(rule, "thresholds", "]"), offsets = numbers(rule, "offsets", "]]");
  if (states.empty()) throw std::runtime_error("the file keeps no states: compile with --streaming");
  // A step writes states over what it read, or to the other side; one that it does not touch takes no memory.
  std::vector<Ort::Value> sides[2];
  Ort::IoBinding bindings[2] = {Ort::IoBinding(session), Ort::IoBinding(session)};
  const Ort::MemoryInfo memory("Cpu", OrtArenaAllocator, 0, OrtMemTypeDefault);
  for (auto& each : bindings) each.BindOutput(session.GetOutputNameAllocated(0, allocator).get(), memory);
  for (size_t i = 0; i < session.GetInputCount(); i++) {
    const std::string name = session.GetInputNameAllocated(i, allocator).get();
    auto shape = session.GetInputTypeInfo(i).GetTensorTypeAndShapeInfo().GetShape();
    const auto kind = session.GetInputTypeInfo(i).GetTensorTypeAndShapeInfo().GetElementType();
    shape[0] = shape[0] < 2 ? 1 : throw std::runtime_error("several streams at once: compile without --static-batch");
    for (auto& side : sides) side.push_back(Ort::Value::CreateTensor(allocator, shape.data(), shape.size(), kind));
    const auto entry = after(states, "{\"input\": \"" + name + "\", \"output\": \"");
    const std::string state = entry.empty() ? "" : entry[0].substr(0, entry[0].find("{\"input\""));
    const bool twice = !entry.empty() && state.find("\"in_place\": true") == std::string::npos;
    for (int k = 0; k < 2; k++) bindings[k].BindInput(name.c_str(), sides[k * twice][i]);
    if (entry.empty()) continue;  // the image comes first
    for (int k : {0, 1}) bindings[k].BindOutput(state.substr(0, state.find('"')).c_str(), sides[(1 - k) * twice][i]);
    float* const first = sides[0][i].GetTensorMutableData<float>();
    float* const end = first + sides[0][i].GetTensorTypeAndShapeInfo().GetElementCount();
    const auto parts = after(state, "{");  // of a packed state; each fills all to the end, and the next what is its own
    for (const auto& part : parts.empty() ? std::vector<std::string>{state} : parts)
      std::fill(first + size_t(number(part, "offset")), end, float(number(part, "initial")));
  }
  float* const pixels = sides[0][0].GetTensorMutableData<float>();
  const bool raw = type == "\"uint8\"";
  const size_t size = sides[0][0].GetTensorTypeAndShapeInfo().GetElementCount(), bytes = raw ? size : size * 4;
  for (size_t step = 0, got; (got = std::fread(pixels, 1, bytes, frames)) || !step;) {
    const std::string has = std::to_string(got) + " of " + std::to_string(bytes) + " bytes, as ";
    if (got < bytes) throw std::runtime_error("the last frame has " + has + (raw ? "uint8" : "float32"));
    if (!raw && !std::equal(pixels, pixels + size, pixels)) throw std::runtime_error("a frame has NaN");
    for (int i = 0; i < repeat; i++, step++) {
      const auto began = std::chrono::steady_clock::now();
      session.Run(Ort::RunOptions(), bindings[step % 2]);
      const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - began;
      const Ort::Value scores = std::move(bindings[step % 2].GetOutputValues()[0]);
      const float* const data = scores.GetTensorData<float>();
      const auto sizes = scores.GetTensorTypeAndShapeInfo();
      const size_t classes = sizes.GetElementCount();
      if (kept) std::fwrite(data, sizeof(float), classes, kept);
      std::vector<double> answer(data, data + classes);
      for (size_t k = 0; k < classes && step < limits.size(); k++) answer[k] += offsets.at(step * classes + k);
      const auto best = std::max_element(answer.begin(), answer.end()) - answer.begin();
      const char* const words = sizes.GetDimensionsCount() == 2 ? "" : "largest at element ";
      std::printf("step %zu: %s%td, %.2f ms\n", step + 1, words, best, time.count());
      if (step < limits.size() && margin(answer) >= limits[step]) return 0;
    }
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "stream: %s\n", error.what());
  return 1;
}
