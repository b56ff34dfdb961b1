// A model compiled by svitc, in WebAssembly. How pictures become inputs is read from the file's own metadata.
import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1; // more need a page that is isolated from others (COOP and COEP headers)

export class Classifier {
  // Fetch and load a file.
  static async load(url) {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
    const bytes = new Uint8Array(await response.arrayBuffer());
    const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    return new Classifier(session, metadata(bytes));
  }

  constructor(session, about) {
    const shape = session.inputMetadata[0].shape; // N, C, H, W; of a file that takes bytes N, H, W, C
    if (shape.length !== 4) throw new Error("the model takes event frames, not pictures");
    this.session = session;
    this.bytes = about["image.dtype"] === "uint8";
    const [first, second, third] = shape.slice(1);
    [this.channels, this.height, this.width] = this.bytes ? [third, first, second] : [first, second, third];
    this.mean = about["image.mean"] ?? new Array(this.channels).fill(0);
    this.std = about["image.std"] ?? new Array(this.channels).fill(1);
    this.resize = about["image.resize"] ?? null;
    this.crop = about["image.crop"] ?? [this.height, this.width];
    this.classes = about["classes"] ?? [];
    this.batch = about["batch"] ?? 1; // a file may take exactly so many images at once
  }

  // Scale and crop a picture (a File or Blob) as the metadata say, and return the input: float32, channels first, or
  // bytes, channels last.
  async pixels(file) {
    const picture = await createImageBitmap(file, { colorSpaceConversion: "none" });
    const [height, width] = this.crop;
    const scale = this.resize === null
      ? Math.max(width / picture.width, height / picture.height) // so that it just covers the crop
      : this.resize / Math.min(picture.width, picture.height);
    const size = [Math.round(picture.width * scale), Math.round(picture.height * scale)];
    const cropped = new OffscreenCanvas(width, height);
    draw(cropped, picture, Math.round((width - size[0]) / 2), Math.round((height - size[1]) / 2), ...size);
    const input = new OffscreenCanvas(this.width, this.height);
    draw(input, cropped, 0, 0, this.width, this.height);
    const { data } = input.getContext("2d").getImageData(0, 0, this.width, this.height);
    const count = this.width * this.height;
    const values = this.bytes ? new Uint8Array(this.channels * count) : new Float32Array(this.channels * count);
    for (let i = 0; i < count; i++) {
      const [r, g, b] = data.subarray(4 * i, 4 * i + 3);
      const colors = this.channels === 1 ? [Math.round(0.299 * r + 0.587 * g + 0.114 * b)] : [r, g, b];
      colors.forEach((value, c) => {
        if (this.bytes) values[i * this.channels + c] = value;
        else values[c * count + i] = (value / 255 - this.mean[c]) / this.std[c];
      });
    }
    return values;
  }

  // Run the model on one input and return its logits.
  async logits(values) {
    const { session, batch, channels, height, width } = this;
    const images = new values.constructor(batch * values.length);
    for (let i = 0; i < batch; i++) images.set(values, i * values.length);
    const image = this.bytes
      ? new ort.Tensor("uint8", images, [batch, height, width, channels])
      : new ort.Tensor("float32", images, [batch, channels, height, width]);
    const { data } = (await session.run({ [session.inputNames[0]]: image }))[session.outputNames[0]];
    return data.subarray(0, data.length / this.batch);
  }

  // Return the `count` most probable classes.
  best(logits, count) {
    const top = Math.max(...logits);
    const powers = Array.from(logits, (value) => Math.exp(value - top));
    const sum = powers.reduce((a, b) => a + b, 0);
    return powers
      .map((power, i) => ({ name: this.classes[i] ?? `class ${i}`, probability: power / sum }))
      .sort((a, b) => b.probability - a.probability)
      .slice(0, count);
  }
}

function draw(canvas, picture, ...place) {
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, ...place);
}

// Return the metadata of an ONNX file, whose values are JSON: field 14 of the message ModelProto, pairs of strings.
export function metadata(bytes) {
  const found = {};
  for (const [field, content] of fields(bytes)) {
    if (field !== 14) continue;
    const entry = Object.fromEntries(Array.from(fields(content), ([key, text]) => [key, new TextDecoder().decode(text)]));
    try { found[entry[1]] = JSON.parse(entry[2]); } catch { found[entry[1]] = entry[2]; }
  }
  return found;
}

// Yield number and content of the fields of a protobuf message that have a length; the others are skipped.
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const type = tag % 8;
    if (type === 0) varint();
    else if (type === 1) at += 8;
    else if (type === 5) at += 4;
    else {
      const size = varint();
      yield [Math.floor(tag / 8), bytes.subarray(at, at + size)];
      at += size;
    }
  }
}
