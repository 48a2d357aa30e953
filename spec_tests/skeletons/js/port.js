// A port of BlockBottleneck2d: what is not written yet says so.
//
//     mdnc-spec run --subject 'cmd:node port.js' --until-first-failure

// First, so that nothing that a library prints can reach the protocol.
import { serve } from './protocol.js';

// Import your framework here.

/** Every parameter and buffer of a block, and the shape of its output if the request has a `shape` (chapters 1 to 3). */
function describe(metadata) {
  throw new Error('describe is not written yet');
}

/** The output for tensors.x (N, C, H, W) and, in training, every new buffer (chapters 4 and 6). */
function forward(metadata, tensors) {
  throw new Error('forward is not written yet');
}

// Write these two as well and add them below: `backward` (chapter 5) and `init` (7.4 to 7.7).

const hello = {
  name: 'my port',
  version: '0',
  language: 'JavaScript',
  modes: 'train,eval',
  dtypes: 'F32',
  accumulation: 'float32',
  determinism: 'bitwise',
};
await serve(hello, { describe, forward });
