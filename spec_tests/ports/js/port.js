/**
 * MDNC's BlockBottleneck2d in TensorFlow.js: NHWC tensors, HWIO weights, gradients by `tf.grads`.
 *
 * It was written from SPEC.md and PROTOCOL.md; numbers such as 2.6 are their clauses.
 */

// First, so that nothing that a library prints can reach the protocol.
import { ARRAYS, BadRequest, InvalidInput, TooLarge, serve } from './protocol.js';

import * as tf from '@tensorflow/tfjs';

/**
 * @typedef {[number, number]} Pair  height, width
 * @typedef {{ name: string, kind: 'conv' | 'norm' | 'act' | 'up', inputs: number, outputs: number,
 *   kernel: Pair, stride: Pair, padding: Pair }} Layer
 * @typedef {{ dtype: string, shape: number[] }} Entry
 * @typedef {Record<string, tf.Tensor>} State
 */

const EPSILON = 1e-5;
const MOMENTUM = 0.1;

// Arguments (chapter 1)

const NAMES = {
  normalizer: ['batch', 'inst', 'pinst', 'null'],
  activator: ['prelu', 'relu', 'null'],
  layer_order: ['new', 'old'],
  scaler: ['down', 'up'],
};

function refuseArgument(name, text, allowed) {
  throw new InvalidInput(`\`${name}\` (=${text ?? 'missing'}) must be ${allowed}`);
}

/** A number that is the integer which was meant; above 2^53, it may be another. */
function exact(number) {
  if (!Number.isSafeInteger(number)) throw new TooLarge(`${number} is above 2^53`);
  return number;
}

/** The integers of a text, either one or a pair; null if it is anything else. */
function integers(text) {
  const integer = '(-?(?:0|[1-9][0-9]*))';
  const match = new RegExp(`^(?:${integer}|\\[${integer},${integer}\\])$`).exec(text ?? '');
  return match && match.slice(1).filter((part) => part !== undefined).map((part) => exact(Number(part)));
}

function readNumber(name, text) {
  const found = integers(text);
  if (found?.length !== 1 || found[0] < 1) refuseArgument(name, text, 'an integer >= 1');
  return found[0];
}

/** @returns {Pair} */
function readPair(name, text, low = 1, also = '') {
  const found = integers(text);
  if (!found?.every((entry) => entry >= low)) {
    refuseArgument(name, text, `an integer >= ${low}, or a pair [height,width] of them${also}`);
  }
  return [found[0], found.at(-1)];
}

function readName(name, text) {
  if (!NAMES[name].includes(text)) refuseArgument(name, text, `one of ${NAMES[name].join(', ')}`);
  return text;
}

function readConfig(metadata) {
  const text = (name, fallback) => metadata[`cfg.${name}`] ?? fallback;
  const size = text('output_size', 'null');
  return {
    inPlanes: readNumber('in_planes', text('in_planes')),
    outPlanes: readNumber('out_planes', text('out_planes')),
    kernel: readPair('kernel_size', text('kernel_size', '3')),
    stride: readPair('stride', text('stride', '1')),
    padding: readPair('padding', text('padding', '1'), 0),
    outputSize: size === 'null' ? null : readPair('output_size', size, 1, ', or null'),
    normalizer: readName('normalizer', text('normalizer', 'pinst')),
    activator: readName('activator', text('activator', 'prelu')),
    layerOrder: readName('layer_order', text('layer_order', 'new')),
    scaler: readName('scaler', text('scaler', 'down')),
  };
}

function readShape(text) {
  if (!/^\[((0|[1-9]\d*)(,(0|[1-9]\d*))*)?\]$/.test(text)) throw new BadRequest(`the shape ${text} is no list of integers`);
  return JSON.parse(text).map(exact);
}

// Structure (chapter 2)

/** @returns {Record<string, Layer[]>} the layers of each branch */
function structure(config) {
  const { inPlanes, outPlanes, normalizer, activator, layerOrder, scaler } = config;
  const up = scaler === 'up';
  const rescales = Math.max(...config.stride) > 1 || (up && config.outputSize !== null);
  const stride = up ? [1, 1] : config.stride;
  const preActivated = layerOrder === 'new' && normalizer !== 'null';

  function branch(name, outputs, geometry = {}, upsamples = false) {
    const conv = upsamples ? ['up', 'conv'] : ['conv'];
    const norm = normalizer === 'null' ? [] : ['norm'];
    const act = activator === 'null' || name === 'in_node' ? [] : ['act'];
    const first = preActivated && name !== 'in_node';
    let width = inPlanes;
    return (first ? [...norm, ...act, ...conv] : [...conv, ...norm, ...act]).map((kind, index) => {
      const inputs = width;
      if (kind === 'conv') width = outputs;
      const plain = { kernel: [1, 1], stride: [1, 1], padding: [0, 0] };
      return { name: `${name}.${index}`, kind, inputs, outputs: width, ...plain, ...geometry };
    });
  }

  const branches = {
    conv1: branch('conv1', inPlanes),
    conv2: branch('conv2', inPlanes, { kernel: config.kernel, stride, padding: config.padding }, up && rescales),
    conv3: branch('conv3', outPlanes),
  };
  if (rescales || inPlanes !== outPlanes) branches.in_node = branch('in_node', outPlanes, { stride }, up);
  return branches;
}

/** @returns {Record<string, Entry>} every parameter (`p.…`) and buffer (`b.…`), in the order of the state */
function describeState(config, branches) {
  const entries = {};
  for (const { name, kind, inputs, outputs, kernel } of Object.values(branches).flat()) {
    const put = (role, entry, shape = [outputs], dtype = 'F32') => {
      entries[`${role}.${name}.${entry}`] = { dtype, shape };
    };
    if (kind === 'conv') {
      put('p', 'weight', [outputs, inputs, ...kernel]);
      if (config.normalizer === 'null') put('p', 'bias');
    } else if (kind === 'norm' && config.normalizer !== 'inst') {
      put('p', 'weight');
      put('p', 'bias');
      if (config.normalizer === 'batch') {
        put('b', 'running_mean');
        put('b', 'running_var');
        put('b', 'num_batches_tracked', [], 'I64');
      }
    } else if (kind === 'act' && config.activator === 'prelu') {
      put('p', 'weight');
    }
  }
  return entries;
}

// Shapes (chapter 3)

const convolved = (length, { kernel, stride, padding }, axis) =>
  Math.floor((length + 2 * padding[axis] - kernel[axis]) / stride[axis]) + 1;

const upsampled = (config, size) => config.outputSize ?? size.map((length, axis) => exact(length * config.stride[axis]));

/** The size behind each layer of a branch. */
function sizes(config, branch, size) {
  return branch.map((layer) => {
    if (layer.kind === 'up') size = upsampled(config, size);
    if (layer.kind === 'conv') size = size.map((length, axis) => convolved(length, layer, axis));
    return size;
  });
}

/** The shape of the output. Refuses what no mode takes, and with `training` what training does not. */
function outputShape(config, branches, shape, training) {
  const { inPlanes, normalizer } = config;
  if (shape.length !== 4 || shape[1] !== inPlanes || Math.min(...shape) < 1) {
    throw new InvalidInput(`\`x\` (shape [${shape}]) must have the shape [N,${inPlanes},H,W], nothing of it empty`);
  }
  const [batch, , ...size] = shape;
  const residual = sizes(config, [...branches.conv1, ...branches.conv2, ...branches.conv3], size);
  const shortcut = sizes(config, branches.in_node ?? [], size);
  const [end, cut] = [residual.at(-1), shortcut.at(-1) ?? size];
  if (`${end}` !== `${cut}`) {
    const { kernel, padding, stride, outputSize, scaler } = config;
    throw new InvalidInput(
      `\`x\` (shape [${shape}]) gives the size (${end.join(', ')}) in the residual branch and (${cut.join(', ')}) in ` +
        `the shortcut, because of kernel_size=[${kernel}], padding=[${padding}], stride=[${stride}], ` +
        `output_size=${outputSize && `[${outputSize}]`}, scaler=${scaler}; they must be equal`,
    );
  }
  const ownStatistics = normalizer !== 'null' && (normalizer !== 'batch' || training);
  const layers = Object.values(branches).flat();
  [...residual, ...shortcut].forEach(([height, width], index) => {
    const elements = height * width * (normalizer === 'batch' ? batch : 1);
    if (layers[index].kind === 'norm' && ownStatistics && elements === 1) {
      throw new InvalidInput(
        `\`x\` (shape [${shape}]) leaves the norm ${layers[index].name} a single element; at least 2 are allowed`,
      );
    }
  });
  return [batch, config.outPlanes, ...cut];
}

// Values (chapters 4 and 6)

function normalize(config, { name }, x, state, training, buffers) {
  const batch = config.normalizer === 'batch';
  let [mean, variance] = [state[`b.${name}.running_mean`], state[`b.${name}.running_var`]];
  if (!batch || training) {
    ({ mean, variance } = tf.moments(x, batch ? [0, 1, 2] : [1, 2], true));
  }
  if (batch && training) {
    const move = (entry, value) => {
      const old = state[`b.${name}.${entry}`];
      buffers[`b.${name}.${entry}`] = tf.add(tf.mul(old, 1 - MOMENTUM), tf.mul(tf.reshape(value, [-1]), MOMENTUM));
    };
    const count = x.size / x.shape[3];
    move('running_mean', mean);
    move('running_var', tf.mul(variance, count / (count - 1)));
  }
  const y = tf.div(tf.sub(x, mean), tf.sqrt(tf.add(variance, EPSILON)));
  return config.normalizer === 'inst' ? y : tf.add(tf.mul(y, state[`p.${name}.weight`]), state[`p.${name}.bias`]);
}

function convolve({ name, stride, padding: [p, q] }, x, state) {
  const margins = [[0, 0], [p, p], [q, q], [0, 0]];
  const y = tf.conv2d(x, state[`p.${name}.weight`], stride, margins);
  const bias = state[`p.${name}.bias`];
  return bias === undefined ? y : tf.add(y, bias);
}

function activate(config, { name }, x, state) {
  return config.activator === 'relu' ? tf.relu(x) : tf.prelu(x, state[`p.${name}.weight`]);
}

/**
 * Bilinear, with aligned corners (4.14).
 *
 * The gradient that TensorFlow.js has for it on the CPU computes the right numbers and calls them a tensor of
 * shape [N,W,H,C]: nothing but a square image can be trained. The shape is put right here.
 */
function upsample(config, x) {
  const size = upsampled(config, x.shape.slice(1, 3));
  return tf.customGrad((images, save) => {
    save([images]);
    const gradFunc = (dy, [saved]) => {
      const options = { alignCorners: true, halfPixelCenters: false };
      const dx = tf.engine().runKernel(tf.ResizeBilinearGrad, { images: saved, dy }, options);
      return tf.reshape(dx, saved.shape);
    };
    return { value: tf.image.resizeBilinear(images, size, true), gradFunc };
  })(x);
}

/** The output for `x` (NHWC); in training the new buffers are put into `buffers`. */
function block(config, branches, x, state, training, buffers = {}) {
  const run = (layers, input) =>
    layers.reduce((value, layer) => {
      if (layer.kind === 'norm') return normalize(config, layer, value, state, training, buffers);
      if (layer.kind === 'act') return activate(config, layer, value, state);
      if (layer.kind === 'up') return upsample(config, value);
      return convolve(layer, value, state);
    }, input);
  const residual = run([...branches.conv1, ...branches.conv2, ...branches.conv3], x);
  return tf.add(residual, run(branches.in_node ?? [], x));
}

// The edge: NCHW and OIHW outside, NHWC and HWIO inside

const NCHW_TO_NHWC = [0, 2, 3, 1];
const NHWC_TO_NCHW = [0, 3, 1, 2];
const OIHW_TO_HWIO = [2, 3, 1, 0];
const HWIO_TO_OIHW = [3, 2, 0, 1];

const take = ({ data, shape }, order) => tf.transpose(tf.tensor(data, shape), order);

function give(tensor, order) {
  const turned = tf.transpose(tensor, order);
  return { dtype: 'F32', shape: turned.shape, data: turned.dataSync() };
}

/** Weights have four axes; everything else in the state has one. */
const takeEntry = (tensor) => take(tensor, tensor.shape.length === 4 ? OIHW_TO_HWIO : [0]);
const giveEntry = (tensor) => give(tensor, tensor.rank === 4 ? HWIO_TO_OIHW : [0]);

/** Raise BadRequest unless the tensors are those that are due. */
function checkTensors(due, tensors) {
  for (const [name, { dtype, shape }] of Object.entries(due)) {
    const found = tensors[name];
    if (found === undefined) throw new BadRequest(`the tensor ${name} is missing`);
    if (found.dtype !== dtype || `${found.shape}` !== `${shape}`) {
      throw new BadRequest(`the tensor ${name} is ${found.dtype} [${found.shape}]; due is ${dtype} [${shape}]`);
    }
  }
  const surplus = Object.keys(tensors).find((name) => !Object.hasOwn(due, name));
  if (surplus !== undefined) throw new BadRequest(`the tensor ${surplus} is one too many`);
}

/** Check a request for a call and turn its tensors into TensorFlow's. */
function readCall(metadata, tensors, withGradient) {
  const config = readConfig(metadata);
  const branches = structure(config);
  const training = metadata.mode === 'train';
  const { x } = tensors;
  if (x === undefined) throw new BadRequest('the tensor x is missing');
  if (x.dtype !== 'F32') throw new InvalidInput(`\`x\` is ${x.dtype}; allowed is F32`);
  const due = { x, ...describeState(config, branches) };
  const shape = outputShape(config, branches, x.shape, training);
  checkTensors(withGradient ? { ...due, dy: { dtype: 'F32', shape } } : due, tensors);
  const state = {};
  for (const [name, tensor] of Object.entries(tensors)) {
    if (/^[pb]\./.test(name) && tensor.dtype === 'F32') state[name] = takeEntry(tensor);
  }
  return { config, branches, training, x: take(x, NCHW_TO_NHWC), state };
}

// Operations

function describe(metadata) {
  const config = readConfig(metadata);
  const branches = structure(config);
  const text = ({ dtype, shape }) => `${dtype} [${shape}]`;
  const said = {};
  for (const [name, entry] of Object.entries(describeState(config, branches))) {
    said[name.replace(/^p\./, 'param.').replace(/^b\./, 'buffer.')] = text(entry);
  }
  if (metadata.shape !== undefined) {
    const shape = readShape(metadata.shape);
    said.out = text({ dtype: 'F32', shape: outputShape(config, branches, shape, false) });
  }
  return { metadata: said };
}

function forward(metadata, tensors) {
  const { config, branches, training, x, state } = readCall(metadata, tensors, false);
  const buffers = {};
  const y = block(config, branches, x, state, training, buffers);
  const reply = { y: give(y, NHWC_TO_NCHW) };
  for (const [name, value] of Object.entries(buffers)) reply[name] = giveEntry(value);
  for (const [name, { dtype, shape, data }] of Object.entries(tensors)) {
    // TensorFlow.js has no 64-bit integers: the counters never become its tensors.
    if (training && dtype === 'I64') reply[name] = { dtype, shape, data: data.map((count) => count + 1n) };
  }
  return { tensors: reply };
}

function backward(metadata, tensors) {
  const { config, branches, training, x, state } = readCall(metadata, tensors, true);
  const names = Object.keys(state).filter((name) => name.startsWith('p.'));
  const call = (input, ...values) => {
    const parameters = Object.fromEntries(names.map((name, index) => [name, values[index]]));
    return block(config, branches, input, { ...state, ...parameters }, training);
  };
  const parameters = names.map((name) => state[name]);
  const [dx, ...rest] = tf.grads(call)([x, ...parameters], take(tensors.dy, NCHW_TO_NHWC));
  const reply = { dx: give(dx, NHWC_TO_NCHW) };
  names.forEach((name, index) => {
    reply[name.replace(/^p/, 'd')] = giveEntry(rest[index]);
  });
  return { tensors: reply };
}

/** A new block's state (7.4 to 7.7). */
function init(metadata) {
  const config = readConfig(metadata);
  const branches = structure(config);
  const reply = {};
  for (const layer of Object.values(branches).flat()) {
    const limit = 1 / Math.sqrt(layer.inputs * layer.kernel[0] * layer.kernel[1]);
    for (const [name, { dtype, shape }] of Object.entries(describeState(config, { only: [layer] }))) {
      const length = shape.reduce((product, entry) => product * entry, 1);
      const data = new ARRAYS[dtype](length);
      if (layer.kind === 'conv') {
        data.set(tf.randomUniform(shape, -limit, limit, 'float32', `${metadata.seed}/${name}`).dataSync());
      } else if (layer.kind === 'act') {
        data.fill(0.25);
      } else if (/weight|running_var/.test(name)) {
        data.fill(1);
      }
      reply[name] = { dtype, shape, data };
    }
  }
  return { tensors: reply };
}

/** The operation, with every tensor that it makes disposed of. */
const tidy = (operation) => (metadata, tensors) => {
  let reply;
  // Not returned through `tf.tidy`, which would look for tensors in every element of the arrays.
  tf.tidy(() => {
    reply = operation(metadata, tensors);
  });
  return reply;
};

tf.enableProdMode();
await tf.setBackend('cpu');

await serve(
  {
    name: 'mdnc-port-tfjs',
    version: '0.1.0',
    language: `JavaScript, TensorFlow.js ${tf.version_core}`,
    modes: 'train,eval',
    dtypes: 'F32',
    accumulation: 'float32',
    determinism: 'bitwise',
  },
  { describe, forward: tidy(forward), backward: tidy(backward), init: tidy(init) },
);
