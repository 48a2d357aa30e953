/**
 * The wire contract of PROTOCOL.md for Node: messages, errors, and the loop. No dependencies.
 *
 * Import it before any library: from then on, what a library prints goes to standard error.
 */

import { readSync, writeSync } from 'node:fs';

/**
 * @typedef {{ dtype: string, shape: number[], data: ArrayBufferView }} Tensor  row-major; BF16 is kept as its bits
 * @typedef {Record<string, Tensor>} Tensors
 * @typedef {Record<string, string>} Metadata
 * @typedef {{ metadata?: Metadata, tensors?: Tensors }} Reply
 * @typedef {(metadata: Metadata, tensors: Tensors) => Reply | Promise<Reply>} Operation
 */

// Standard output belongs to the protocol, which writes to the descriptor itself.
Object.defineProperty(process, 'stdout', { get: () => process.stderr });

/** The arrays of each type. They have the byte order of the machine: little-endian wherever Node is common. */
export const ARRAYS = {
  F32: Float32Array,
  F64: Float64Array,
  BF16: Uint16Array,
  I64: BigInt64Array,
  BOOL: Uint8Array,
};
const FLOATING = ['F32', 'F64', 'BF16'];

/** SPEC says that this argument or this input is refused. */
export class InvalidInput extends Error {
  code = 'invalid_input';
}

/** A tensor is missing, one too many, or of another shape or type than is due; or a `mode`, `dtype` … is no such. */
export class BadRequest extends Error {
  code = 'bad_request';
}

/** An op, a mode or a type that this port does not offer. */
export class Unsupported extends Error {}

/** A number that no integer of JavaScript can be. */
export class TooLarge extends Error {
  code = 'oom';
}

/** Call `transfer` again for as long as a descriptor that does not block is not ready. */
function patiently(transfer) {
  for (;;) {
    try {
      return transfer();
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    }
  }
}

/** Exactly `length` bytes of standard input, or null where it ends before the first of them. */
function read(length) {
  const bytes = Buffer.alloc(length);
  for (let filled = 0; filled < length; ) {
    const count = patiently(() => readSync(0, bytes, filled, length - filled, null));
    if (count === 0 && filled === 0) return null;
    if (count === 0) throw new Error(`standard input ended after ${filled} of ${length} bytes`);
    filled += count;
  }
  return bytes;
}

function write(bytes) {
  for (let sent = 0; sent < bytes.length; ) {
    sent += patiently(() => writeSync(1, bytes, sent));
  }
}

/** The next request, or null at the end of standard input. */
function readRequest() {
  const head = read(8);
  if (head === null) return null;
  const header = JSON.parse(read(Number(head.readBigUInt64LE())).toString());
  const { __metadata__: metadata = {}, ...entries } = header;
  const end = Math.max(0, ...Object.values(entries).map((entry) => entry.data_offsets[1]));
  const body = end > 0 ? read(end) : Buffer.alloc(0);
  // Without a prototype, a tensor may have any name.
  const tensors = Object.create(null);
  for (const [name, { dtype, shape, data_offsets: offsets }] of Object.entries(entries)) {
    // A copy, since a typed array must begin at a multiple of its element's size.
    const bytes = new Uint8Array(body.subarray(...offsets));
    tensors[name] = { dtype, shape, data: new ARRAYS[dtype](bytes.buffer) };
  }
  return { metadata, tensors };
}

/** @param {Metadata} metadata @param {Tensors} [tensors] */
function writeReply(metadata, tensors = {}) {
  const header = { __metadata__: metadata };
  const parts = [];
  let offset = 0;
  for (const [name, { dtype, shape, data }] of Object.entries(tensors)) {
    header[name] = { dtype, shape, data_offsets: [offset, offset + data.byteLength] };
    parts.push(Buffer.from(data.buffer, data.byteOffset, data.byteLength));
    offset += data.byteLength;
  }
  const text = Buffer.from(JSON.stringify(header));
  const head = Buffer.alloc(8);
  head.writeBigUInt64LE(BigInt(text.length));
  write(Buffer.concat([head, text, ...parts]));
}

/** What the metadata of each op must have. */
const NEEDED = { forward: ['mode'], backward: ['mode'], describe: ['dtype'], init: ['dtype', 'seed'] };
/** What PROTOCOL.md allows there, whether or not a port offers it. */
const WRITTEN = {
  mode: /^(train|eval)$/,
  dtype: /^(F32|F64|BF16)$/,
  seed: /^(0|[1-9][0-9]*)$/,
};

/** Throw BadRequest for what PROTOCOL.md does not have, and Unsupported for what `hello` does not offer. */
function checkRequest(hello, metadata, tensors) {
  const { op, mode, dtype } = metadata;
  for (const key of NEEDED[op] ?? []) {
    const due = WRITTEN[key];
    if (!due.test(metadata[key] ?? '')) throw new BadRequest(`${key} is ${metadata[key]}; due is ${due}`);
  }
  if (op === 'init' && BigInt(metadata.seed) >= 1n << 63n) throw new BadRequest(`seed is ${metadata.seed}, over 2^63 - 1`);
  if (mode !== undefined && !hello.modes.split(',').includes(mode)) throw new Unsupported(mode);
  const types = [dtype, ...Object.values(tensors).map((tensor) => tensor.dtype)];
  const offered = hello.dtypes.split(',');
  const other = types.find((type) => FLOATING.includes(type) && !offered.includes(type));
  if (other !== undefined) throw new Unsupported(other);
}

/** The metadata that tell of a failure. */
function failure(error) {
  if (error instanceof Unsupported) return { status: 'unsupported', feature: error.message };
  if (error instanceof InvalidInput || error instanceof BadRequest || error instanceof TooLarge) {
    return { status: 'error', code: error.code, message: error.message };
  }
  console.error(error);
  const code = error instanceof RangeError && /allocation/.test(error.message) ? 'oom' : 'internal';
  return { status: 'error', code, message: String(error) };
}

/**
 * Answer requests until `stop` or the end of standard input.
 *
 * @param {Metadata} hello who the port is and what it offers, without `protocol` and `ops`
 * @param {Record<string, Operation>} operations `describe`, `forward` and whatever else the port has
 */
export async function serve(hello, operations) {
  const greeting = { protocol: '1', ops: Object.keys(operations).join(','), ...hello };
  const known = { hello: () => ({ metadata: greeting }), ...operations };
  for (;;) {
    const request = readRequest();
    if (request === null || request.metadata.op === 'stop') return;
    const { metadata, tensors } = request;
    const { id, op } = metadata;
    try {
      if (!Object.hasOwn(known, op)) throw new Unsupported(op);
      checkRequest(hello, metadata, tensors);
      const reply = await known[op](metadata, tensors);
      writeReply({ id, status: 'ok', ...reply.metadata }, reply.tensors);
    } catch (error) {
      writeReply({ id, ...failure(error) });
    }
  }
}
