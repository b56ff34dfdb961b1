// Runs an ONNX file in onnxruntime-web (WebAssembly) for svitc/runtimes/onnx_runtime_web.py.
//
// Messages on stdin and stdout alike: a header in JSON, with its length in four bytes before it, then the bytes of the
// tensors that it lists, in order. The first message in holds the model, each that follows the inputs of one run.
"use strict";
const fs = require("node:fs");
const path = require("node:path");
const { createRequire } = require("node:module");

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, uint8: Uint8Array, int8: Int8Array, bool: Uint8Array,
  uint16: Uint16Array, int16: Int16Array, uint32: Uint32Array, int32: Int32Array,
  uint64: BigUint64Array, int64: BigInt64Array,
};

// Read exactly `size` bytes of stdin; null at its end.
function readBytes(size) {
  const bytes = Buffer.alloc(size);
  for (let done = 0; done < size; ) {
    const count = fs.readSync(0, bytes, done, size - done, null);
    if (count === 0) return null;
    done += count;
  }
  return bytes;
}

function readHeader() {
  const size = readBytes(4);
  return size && JSON.parse(readBytes(size.readUInt32LE(0)).toString());
}

function writeBytes(bytes) {
  for (let done = 0; done < bytes.length; ) done += fs.writeSync(1, bytes, done, bytes.length - done);
}

function reply(header, tensors = []) {
  const text = Buffer.from(JSON.stringify(header));
  const size = Buffer.alloc(4);
  size.writeUInt32LE(text.length);
  writeBytes(size);
  writeBytes(text);
  for (const { data } of tensors) writeBytes(Buffer.from(data.buffer, data.byteOffset, data.byteLength));
}

function readTensors(ort, list) {
  return Object.fromEntries(list.map(({ name, type, dims, bytes }) => {
    const { buffer, byteOffset } = readBytes(bytes);
    const Array_ = ARRAYS[type];
    const data = new Array_(buffer.slice(byteOffset, byteOffset + bytes)); // a copy, aligned to its elements
    return [name, new ort.Tensor(type, data, dims)];
  }));
}

async function main() {
  const ort = createRequire(path.join(process.cwd(), "_"))("onnxruntime-web");
  const { model: modelBytes, threads } = readHeader();
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  const options = { executionProviders: ["wasm"], logSeverityLevel: 3 };
  const session = await ort.InferenceSession.create(readBytes(modelBytes), options);
  reply({ inputs: session.inputNames, outputs: session.outputNames });
  for (let header; (header = readHeader()); ) {
    const results = await session.run(readTensors(ort, header.tensors), header.outputs);
    const tensors = header.outputs.map((name) => results[name]);
    const list = tensors.map(({ type, dims, data }) => ({ type, dims, bytes: data.byteLength }));
    reply({ tensors: list }, tensors);
  }
}

main().then(
  () => process.exit(0), // it would wait for the threads of WebAssembly
  (error) => {
    reply({ error: String((error && error.message) || error) });
    process.exit(1);
  },
);
