// Run a streaming file frame by frame, and print the answer so far and the time of each step (docs/streaming.md).
//
//   g++ -std=c++17 -O2 stream.cpp -I$ORT/include -L$ORT/lib -lonnxruntime -Wl,-rpath,$ORT/lib -o stream
//   ./stream model.onnx FRAMES [REPEAT [SCORES]]
//
// ORT is the folder of a release of ONNX Runtime. FRAMES holds raw float32, C x H x W for each frame, or is - to read
// standard input. Each frame is run REPEAT times: an image needs that. SCORES gets the scores of every step, raw too.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
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

// Return whether the rule of the file allows to stop after a step, counted from 0.
bool sure(const std::string& rule, size_t step, const float* scores, size_t classes) {
  const auto list = after(rule, "\"thresholds\": [");
  std::string limits = list.empty() ? "" : list[0].substr(0, list[0].find(']')) + ",";
  for (; step > 0 && !limits.empty(); step--) limits.erase(0, limits.find(',') + 1);
  if (limits.find_first_of("0123456789") >= limits.find(',')) return false;  // null, or no entry for this step
  const double limit = std::stod(limits), most = *std::max_element(scores, scores + classes);
  std::vector<double> p;
  double sum = 0, entropy = 0;
  for (size_t k = 0; k < classes; k++) sum += p.emplace_back(std::exp(scores[k] - most));
  for (double& each : p) entropy -= (each /= sum) > 0 ? each * std::log(each) : 0;
  std::sort(p.rbegin(), p.rend());
  return after(rule, "\"entropy\"").empty() ? p.at(0) - p.at(1) >= limit : entropy <= limit;
}

int run(int count, char** words) {
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
  const std::string states = metadata("states"), rule = metadata("early_exit");
  if (states.empty()) throw std::runtime_error("the file keeps no states: compile with --streaming");

  // Every step reads the states from one side and writes them to the other, so that none is copied.
  std::vector<Ort::Value> sides[2];
  Ort::IoBinding bindings[2] = {Ort::IoBinding(session), Ort::IoBinding(session)};
  const Ort::MemoryInfo memory("Cpu", OrtArenaAllocator, 0, OrtMemTypeDefault);
  for (auto& each : bindings) each.BindOutput(session.GetOutputNameAllocated(0, allocator).get(), memory);
  size_t image = 0;
  for (size_t i = 0; i < session.GetInputCount(); i++) {
    const std::string name = session.GetInputNameAllocated(i, allocator).get();
    const Ort::TypeInfo info = session.GetInputTypeInfo(i);
    auto shape = info.GetTensorTypeAndShapeInfo().GetShape();
    shape[0] = 1;
    for (auto& side : sides) side.push_back(Ort::Value::CreateTensor<float>(allocator, shape.data(), shape.size()));
    const auto entry = after(states, "{\"input\": \"" + name + "\", \"output\": \"");
    for (int k = 0; k < 2; k++) bindings[k].BindInput(name.c_str(), sides[entry.empty() ? 0 : k][i]);
    if (entry.empty()) { image = i; continue; }
    const std::string state = entry[0].substr(0, entry[0].find("{\"input\"")), to = state.substr(0, state.find('"'));
    for (int k = 0; k < 2; k++) bindings[k].BindOutput(to.c_str(), sides[1 - k][i]);
    float* const first = sides[0][i].GetTensorMutableData<float>();
    float* const end = first + sides[0][i].GetTensorTypeAndShapeInfo().GetElementCount();
    const auto parts = after(state, "{");  // of a packed state; each fills all to the end, and the next what is its own
    for (const auto& part : parts.empty() ? std::vector<std::string>{state} : parts)
      std::fill(first + size_t(number(part, "offset")), end, float(number(part, "initial")));
  }

  float* const pixels = sides[0][image].GetTensorMutableData<float>();
  const size_t size = sides[0][image].GetTensorTypeAndShapeInfo().GetElementCount(), bytes = size * sizeof(float);
  size_t step = 0;
  while (const size_t got = std::fread(pixels, 1, bytes, frames)) {
    const bool nan = std::any_of(pixels, pixels + size, [](float x) { return std::isnan(x); });
    const std::string has = std::to_string(got) + " of " + std::to_string(bytes) + " bytes";
    if (got < bytes || nan) throw std::runtime_error(got < bytes ? "the last frame has " + has : "a frame has NaN");
    for (int i = 0; i < repeat; i++, step++) {
      const auto began = std::chrono::steady_clock::now();
      session.Run(Ort::RunOptions(), bindings[step % 2]);
      const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - began;
      const Ort::Value scores = std::move(bindings[step % 2].GetOutputValues()[0]);
      const float* const data = scores.GetTensorData<float>();
      const size_t classes = scores.GetTensorTypeAndShapeInfo().GetElementCount();
      if (kept) std::fwrite(data, sizeof(float), classes, kept);
      std::printf("step %zu: %td, %.2f ms\n", step + 1, std::max_element(data, data + classes) - data, time.count());
      if (sure(rule, step, data, classes)) return 0;
    }
  }
  return 0;
}

int main(int count, char** words) {
  try {
    return run(count, words);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "stream: %s\n", error.what());
    return 1;
  }
}
