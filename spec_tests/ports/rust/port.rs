//! MDNC's BlockBottleneck2d with nothing but the standard library, as a port for mdnc-spec.
//!
//! Build it with `rustc --edition 2021 -O port.rs`. It was written from SPEC.md and PROTOCOL.md; numbers such
//! as 2.6 are their clauses. Gradients are written out by hand, layer by layer.

mod protocol;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;

use protocol::{show, BadRequest, Float, InvalidInput, Message, Outcome, Tensor, Unsupported};

// ---------------------------------------------------------------- arguments (chapter 1)

type Pair = [i128; 2];

struct Config {
    in_planes: i128,
    out_planes: i128,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    output_size: Option<Pair>,
    normalizer: String,
    activator: String,
    layer_order: String,
    scaler: String,
}

fn integer(text: &str) -> Option<i128> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = digits == "0" || (digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0'));
    text.parse().ok().filter(|_| plain)
}

/// As a seed and the axes of a shape are written.
fn natural(text: &str) -> Option<i128> {
    integer(text).filter(|_| !text.starts_with('-'))
}

/// An integer, or with `pairs` a pair of them.
fn integers(text: &str, pairs: bool) -> Option<Pair> {
    match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) if pairs => {
            let (first, second) = inner.split_once(',')?;
            Some([integer(first)?, integer(second)?])
        }
        _ => integer(text).map(|value| [value, value]),
    }
}

fn read_numbers(request: &Message, name: &str, default: Option<&str>, low: i128, pairs: bool) -> Outcome<Pair> {
    let text = request.get(&format!("cfg.{name}")).or(default).unwrap_or("missing");
    let found = integers(text, pairs).filter(|pair| pair.iter().all(|&entry| entry >= low));
    let more = if pairs { ", or a pair [height,width] of them" } else { "" };
    let or_null = if name == "output_size" { ", or null" } else { "" };
    found.ok_or_else(|| InvalidInput(format!("`{name}` (={text}) must be an integer >= {low}{more}{or_null}")))
}

fn read_name(request: &Message, name: &str, default: &str, allowed: &[&str]) -> Outcome<String> {
    let text = request.get(&format!("cfg.{name}")).unwrap_or(default);
    if allowed.contains(&text) {
        return Ok(text.to_string());
    }
    Err(InvalidInput(format!("`{name}` (={text}) must be one of {}", allowed.join(", "))))
}

fn read_config(request: &Message) -> Outcome<Config> {
    let sized = !matches!(request.get("cfg.output_size"), None | Some("null"));
    Ok(Config {
        in_planes: read_numbers(request, "in_planes", None, 1, false)?[0],
        out_planes: read_numbers(request, "out_planes", None, 1, false)?[0],
        kernel: read_numbers(request, "kernel_size", Some("3"), 1, true)?,
        stride: read_numbers(request, "stride", Some("1"), 1, true)?,
        padding: read_numbers(request, "padding", Some("1"), 0, true)?,
        output_size: sized.then(|| read_numbers(request, "output_size", None, 1, true)).transpose()?,
        normalizer: read_name(request, "normalizer", "pinst", &["batch", "inst", "pinst", "null"])?,
        activator: read_name(request, "activator", "prelu", &["prelu", "relu", "null"])?,
        layer_order: read_name(request, "layer_order", "new", &["new", "old"])?,
        scaler: read_name(request, "scaler", "down", &["down", "up"])?,
    })
}

// ---------------------------------------------------------------- structure (chapter 2) and shapes (chapter 3)

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Conv,
    Norm,
    Act,
    Up,
}

struct Layer {
    name: String,
    kind: Kind,
    inputs: i128,
    outputs: i128,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
}

/// A parameter or buffer: `p.conv1.0.weight`, its shape, and whether it is a counter.
struct Entry {
    name: String,
    shape: Vec<i128>,
    counter: bool,
}

struct Block {
    config: Config,
    residual: Vec<Layer>,
    shortcut: Vec<Layer>,
}

impl Block {
    fn new(config: Config) -> Block {
        let up = config.scaler == "up";
        let rescales = config.stride.iter().any(|&entry| entry > 1) || (up && config.output_size.is_some());
        let stride = if up { [1, 1] } else { config.stride };
        let (kernel, padding, planes) = (config.kernel, config.padding, config.in_planes);
        let projects = rescales || planes != config.out_planes;
        let mut block = Block { config, residual: Vec::new(), shortcut: Vec::new() };
        let mut residual = block.branch("conv1", planes, [1, 1], [1, 1], [0, 0], false);
        residual.extend(block.branch("conv2", planes, kernel, stride, padding, up && rescales));
        residual.extend(block.branch("conv3", block.config.out_planes, [1, 1], [1, 1], [0, 0], false));
        block.residual = residual;
        if projects {
            block.shortcut = block.branch("in_node", block.config.out_planes, [1, 1], stride, [0, 0], up);
        }
        block
    }

    fn branch(&self, name: &str, planes: i128, kernel: Pair, stride: Pair, padding: Pair, up: bool) -> Vec<Layer> {
        let normed = self.config.normalizer != "null";
        let mut kinds = if up { vec![Kind::Up, Kind::Conv] } else { vec![Kind::Conv] };
        let mut others = if normed { vec![Kind::Norm] } else { Vec::new() };
        if self.config.activator != "null" && name != "in_node" {
            others.push(Kind::Act);
        }
        let at = if normed && self.config.layer_order == "new" && name != "in_node" { 0 } else { kinds.len() };
        kinds.splice(at..at, others);
        let mut width = self.config.in_planes;
        let layer = |(index, kind): (usize, Kind)| {
            let inputs = width;
            width = if kind == Kind::Conv { planes } else { width };
            Layer { name: format!("{name}.{index}"), kind, inputs, outputs: width, kernel, stride, padding }
        };
        kinds.into_iter().enumerate().map(layer).collect()
    }

    fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.residual.iter().chain(&self.shortcut)
    }

    fn entries(&self, layer: &Layer) -> Vec<Entry> {
        let normalizer = self.config.normalizer.as_str();
        let named: &[&str] = match layer.kind {
            Kind::Conv if normalizer == "null" => &["p.weight", "p.bias"],
            Kind::Norm if normalizer == "pinst" => &["p.weight", "p.bias"],
            Kind::Norm if normalizer == "batch" => {
                &["p.weight", "p.bias", "b.running_mean", "b.running_var", "b.num_batches_tracked"]
            }
            Kind::Act if self.config.activator == "prelu" => &["p.weight"],
            Kind::Conv => &["p.weight"],
            _ => &[],
        };
        let entry = |name: &&str| {
            let (role, entry) = name.split_once('.').expect("a role");
            let counter = entry == "num_batches_tracked";
            let shape = match layer.kind {
                Kind::Conv if entry == "weight" => vec![layer.outputs, layer.inputs, layer.kernel[0], layer.kernel[1]],
                _ if counter => Vec::new(),
                _ => vec![layer.outputs],
            };
            Entry { name: format!("{role}.{}.{entry}", layer.name), shape, counter }
        };
        named.iter().map(entry).collect()
    }

    fn size_behind(&self, layer: &Layer, size: Pair) -> Pair {
        let length = |axis: usize| match (layer.kind, self.config.output_size) {
            (Kind::Up, Some(target)) => target[axis],
            (Kind::Up, None) => size[axis] * self.config.stride[axis],
            (Kind::Conv, _) => {
                (size[axis] + 2 * layer.padding[axis] - layer.kernel[axis]).div_euclid(layer.stride[axis]) + 1
            }
            _ => size[axis],
        };
        [length(0), length(1)]
    }

    /// The shape of the output; refuses what no mode takes, and with `training` what training does not.
    fn output_shape(&self, shape: &[i128], training: bool) -> Outcome<Vec<i128>> {
        let config = &self.config;
        let &[batch, planes, height, width] = shape else {
            return Err(InvalidInput(format!("`x` (shape {}) must have four axes", show(shape))));
        };
        if planes != config.in_planes || shape.iter().any(|&length| length < 1) {
            let due = format!("[N,{},H,W], nothing of it empty", config.in_planes);
            return Err(InvalidInput(format!("`x` (shape {}) must have the shape {due}", show(shape))));
        }
        let behind =
            |branch: &[Layer]| branch.iter().fold([height, width], |size, layer| self.size_behind(layer, size));
        let (end, cut) = (behind(&self.residual), behind(&self.shortcut));
        if end != cut {
            let size = config.output_size.map_or("null".to_string(), |size| show(&size));
            return Err(InvalidInput(format!(
                "`x` (shape {}) gives the size {} in the residual branch and {} in the shortcut, because of \
                 kernel_size={}, padding={}, stride={}, output_size={size}, scaler={}; they must be equal",
                show(shape),
                show(&end),
                show(&cut),
                show(&config.kernel),
                show(&config.padding),
                show(&config.stride),
                config.scaler,
            )));
        }
        for branch in [&self.residual, &self.shortcut] {
            let mut size = [height, width];
            for layer in branch {
                size = self.size_behind(layer, size);
                let samples = if config.normalizer == "batch" { batch } else { 1 };
                if layer.kind == Kind::Norm && self.own_statistics(training) && samples * size[0] * size[1] == 1 {
                    let text = format!("leaves the norm {} a single element; at least 2 are allowed", layer.name);
                    return Err(InvalidInput(format!("`x` (shape {}) {text}", show(shape))));
                }
            }
        }
        Ok(vec![batch, config.out_planes, cut[0], cut[1]])
    }

    fn own_statistics(&self, training: bool) -> bool {
        self.config.normalizer != "batch" || training
    }
}

// ---------------------------------------------------------------- values and gradients (chapters 4 to 6)

#[derive(Clone)]
struct Array<T> {
    shape: [usize; 4],
    data: Vec<T>,
}

impl<T: Float> Array<T> {
    fn zeros(shape: [usize; 4]) -> Array<T> {
        Array { shape, data: vec![T::default(); shape.iter().product()] }
    }

    /// Where the plane of a sample and channel lies.
    fn plane(&self, sample: usize, channel: usize) -> Range<usize> {
        let [_, channels, height, width] = self.shape;
        let begin = (sample * channels + channel) * height * width;
        begin..begin + height * width
    }
}

type State<T> = BTreeMap<String, Vec<T>>;

/// One call: what it was given, what a backward pass needs, and what it changes.
struct Call<'a, T> {
    block: &'a Block,
    state: &'a State<T>,
    training: bool,
    buffers: State<T>,
    gradients: State<T>,
}

/// What a layer keeps for the backward pass: its input, or for a norm the normalized values and each group's 1/σ.
struct Kept<T> {
    values: Array<T>,
    scales: Vec<T>,
}

impl<T: Float> Call<'_, T> {
    fn parameter(&self, layer: &Layer, entry: &str) -> Option<&Vec<T>> {
        self.state.get(&format!("p.{}.{entry}", layer.name))
    }

    fn forward(&mut self, branch: &[Layer], x: &Array<T>) -> (Array<T>, Vec<Kept<T>>) {
        let mut value = x.clone();
        let mut tape = Vec::new();
        for layer in branch {
            let plain = |values| Kept { values, scales: Vec::new() };
            let (y, kept) = match layer.kind {
                Kind::Conv => (self.convolve(layer, &value), plain(value)),
                Kind::Act => (self.activate(layer, &value), plain(value)),
                Kind::Up => (self.upsample(layer, &value), plain(value)),
                Kind::Norm => self.normalize(layer, &value),
            };
            value = y;
            tape.push(kept);
        }
        (value, tape)
    }

    fn backward(&mut self, branch: &[Layer], tape: &[Kept<T>], dy: &Array<T>) -> Array<T> {
        let mut gradient = dy.clone();
        for (layer, kept) in branch.iter().zip(tape).rev() {
            gradient = match layer.kind {
                Kind::Conv => self.convolve_back(layer, &kept.values, &gradient),
                Kind::Act => self.activate_back(layer, &kept.values, &gradient),
                Kind::Up => self.upsample_back(&kept.values, &gradient),
                Kind::Norm => self.normalize_back(layer, kept, &gradient),
            };
        }
        gradient
    }

    fn convolve(&self, layer: &Layer, x: &Array<T>) -> Array<T> {
        let size = self.block.size_behind(layer, [x.shape[2] as i128, x.shape[3] as i128]);
        let mut y = Array::zeros([x.shape[0], layer.outputs as usize, size[0] as usize, size[1] as usize]);
        let weight = self.parameter(layer, "weight").expect("a weight");
        each_product(layer, x.shape, y.shape, |w, to, from| y.data[to] += weight[w] * x.data[from]);
        if let Some(bias) = self.parameter(layer, "bias") {
            for_planes(&y.clone(), |channel, plane| y.data[plane].iter_mut().for_each(|value| *value += bias[channel]));
        }
        y
    }

    fn convolve_back(&mut self, layer: &Layer, x: &Array<T>, dy: &Array<T>) -> Array<T> {
        let weight = self.parameter(layer, "weight").expect("a weight");
        let mut dx = Array::zeros(x.shape);
        let mut dw = vec![T::default(); weight.len()];
        each_product(layer, x.shape, dy.shape, |w, to, from| {
            dx.data[from] += weight[w] * dy.data[to];
            dw[w] += x.data[from] * dy.data[to];
        });
        if self.parameter(layer, "bias").is_some() {
            let mut db = vec![T::default(); dy.shape[1]];
            for_planes(dy, |channel, plane| db[channel] += dy.data[plane].iter().copied().sum());
            self.gradients.insert(format!("d.{}.bias", layer.name), db);
        }
        self.gradients.insert(format!("d.{}.weight", layer.name), dw);
        dx
    }

    fn activate(&self, layer: &Layer, x: &Array<T>) -> Array<T> {
        let (zero, mut y) = (T::default(), x.clone());
        let slopes = self.parameter(layer, "weight");
        for_planes(x, |channel, plane| {
            for value in &mut y.data[plane] {
                // Comparisons with NaN are false: a ReLU must test for what it changes.
                match slopes {
                    Some(_) if *value > zero => {}
                    Some(slopes) => *value = slopes[channel] * *value,
                    None if *value < zero => *value = zero,
                    None => {}
                }
            }
        });
        y
    }

    fn activate_back(&mut self, layer: &Layer, x: &Array<T>, dy: &Array<T>) -> Array<T> {
        let (zero, mut dx) = (T::default(), dy.clone());
        let slopes = self.parameter(layer, "weight");
        let mut gradient = vec![zero; x.shape[1]];
        for_planes(x, |channel, plane| {
            let slope = slopes.map_or(zero, |slopes| slopes[channel]);
            for place in plane.filter(|&place| x.data[place] <= zero) {
                gradient[channel] += dy.data[place] * x.data[place];
                dx.data[place] = dy.data[place] * slope;
            }
        });
        if slopes.is_some() {
            self.gradients.insert(format!("d.{}.weight", layer.name), gradient);
        }
        dx
    }

    fn upsample(&self, layer: &Layer, x: &Array<T>) -> Array<T> {
        let size = self.block.size_behind(layer, [x.shape[2] as i128, x.shape[3] as i128]);
        let mut y = Array::zeros([x.shape[0], x.shape[1], size[0] as usize, size[1] as usize]);
        each_corner(x, &y.clone(), |to, from, weight| y.data[to] += weight * x.data[from]);
        y
    }

    fn upsample_back(&self, x: &Array<T>, dy: &Array<T>) -> Array<T> {
        let mut dx = Array::zeros(x.shape);
        each_corner(x, dy, |to, from, weight| dx.data[from] += weight * dy.data[to]);
        dx
    }

    /// The planes that share statistics: those of a channel with "batch", else each alone.
    fn groups(&self, x: &Array<T>) -> Vec<(usize, Vec<usize>)> {
        let [samples, channels, ..] = x.shape;
        if self.block.config.normalizer == "batch" {
            return (0..channels).map(|channel| (channel, (0..samples).collect())).collect();
        }
        (0..samples * channels).map(|plane| (plane % channels, vec![plane / channels])).collect()
    }

    fn normalize(&mut self, layer: &Layer, x: &Array<T>) -> (Array<T>, Kept<T>) {
        let own = self.block.own_statistics(self.training);
        let buffer = |entry: &str| format!("b.{}.{entry}", layer.name);
        let (mut y, mut kept) = (x.clone(), Kept { values: x.clone(), scales: Vec::new() });
        let mut replaced = [Vec::new(), Vec::new()];
        for (channel, samples) in self.groups(x) {
            let places = || samples.iter().flat_map(|&sample| x.plane(sample, channel));
            let count = places().count() as f64;
            let (mean, variance) = if own {
                let mean = places().map(|place| x.data[place]).sum::<T>() / T::of(count);
                let squares = places().map(|place| (x.data[place] - mean) * (x.data[place] - mean));
                (mean, squares.sum::<T>() / T::of(count))
            } else {
                (self.state[&buffer("running_mean")][channel], self.state[&buffer("running_var")][channel])
            };
            if own && self.block.config.normalizer == "batch" {
                let unbiased = variance * T::of(count / (count - 1.0));
                for (index, (entry, value)) in [("running_mean", mean), ("running_var", unbiased)].iter().enumerate() {
                    let old = self.state[&buffer(entry)][channel];
                    replaced[index].push(T::of(0.9) * old + T::of(0.1) * *value);
                }
            }
            let scale = T::of(1.0) / (variance + T::of(1e-5)).root();
            let gain = self.parameter(layer, "weight").map_or(T::of(1.0), |weight| weight[channel]);
            let shift = self.parameter(layer, "bias").map_or(T::default(), |bias| bias[channel]);
            for place in places() {
                kept.values.data[place] = (x.data[place] - mean) * scale;
                y.data[place] = gain * kept.values.data[place] + shift;
            }
            kept.scales.push(scale);
        }
        for (entry, values) in ["running_mean", "running_var"].iter().zip(replaced) {
            if !values.is_empty() {
                self.buffers.insert(buffer(entry), values);
            }
        }
        (y, kept)
    }

    fn normalize_back(&mut self, layer: &Layer, kept: &Kept<T>, dy: &Array<T>) -> Array<T> {
        let own = self.block.own_statistics(self.training);
        let mut dx = dy.clone();
        let mut gradients = [vec![T::default(); dy.shape[1]], vec![T::default(); dy.shape[1]]];
        let normal = &kept.values;
        for ((channel, samples), &scale) in self.groups(dy).into_iter().zip(&kept.scales) {
            let places = || samples.iter().flat_map(|&sample| dy.plane(sample, channel));
            let count = T::of(places().count() as f64);
            let sum = places().map(|place| dy.data[place]).sum::<T>();
            let product = places().map(|place| dy.data[place] * normal.data[place]).sum::<T>();
            gradients[0][channel] += product;
            gradients[1][channel] += sum;
            let gain = self.parameter(layer, "weight").map_or(T::of(1.0), |weight| weight[channel]);
            for place in places() {
                let passed = if own { sum / count + normal.data[place] * (product / count) } else { T::default() };
                dx.data[place] = gain * scale * (dy.data[place] - passed);
            }
        }
        for (entry, gradient) in ["weight", "bias"].iter().zip(gradients) {
            if self.parameter(layer, entry).is_some() {
                self.gradients.insert(format!("d.{}.{entry}", layer.name), gradient);
            }
        }
        dx
    }
}

fn for_planes<T: Float>(x: &Array<T>, mut act: impl FnMut(usize, Range<usize>)) {
    for sample in 0..x.shape[0] {
        for channel in 0..x.shape[1] {
            act(channel, x.plane(sample, channel));
        }
    }
}

/// Every product of a convolution (4.2): the places of its weight, of its output and of its input.
fn each_product(layer: &Layer, x: [usize; 4], y: [usize; 4], mut act: impl FnMut(usize, usize, usize)) {
    let [kernel, stride, padding] =
        [layer.kernel, layer.stride, layer.padding].map(|pair| [pair[0] as usize, pair[1] as usize]);
    let met = |axis: usize, i: usize, a: usize| {
        (i * stride[axis] + a).checked_sub(padding[axis]).filter(|&place| place < x[axis + 2])
    };
    for plane in 0..y[0] * y[1] {
        let (sample, output) = (plane / y[1], plane % y[1]);
        for (input, a) in (0..x[1]).flat_map(|input| (0..kernel[0]).map(move |a| (input, a))) {
            for (i, row) in (0..y[2]).filter_map(|i| Some((i, met(0, i, a)?))) {
                let from = ((sample * x[1] + input) * x[2] + row) * x[3];
                let to = (plane * y[2] + i) * y[3];
                for b in 0..kernel[1] {
                    let weight = ((output * x[1] + input) * kernel[0] + a) * kernel[1] + b;
                    for (j, column) in (0..y[3]).filter_map(|j| Some((j, met(1, j, b)?))) {
                        act(weight, to + j, from + column);
                    }
                }
            }
        }
    }
}

/// What each element of an axis is made of (4.14): places and weights, those of weight 0 left out.
fn corners<T: Float>(length: usize, target: usize) -> Vec<Vec<(usize, T)>> {
    let spans = (target - 1).max(1);
    let element = |i: usize| {
        let (place, rest) = (i * (length - 1) / spans, i * (length - 1) % spans);
        let part = T::of(rest as f64) / T::of(spans as f64);
        let both = vec![(place, T::of(1.0) - part), (place + 1, part)];
        both.into_iter().take(if rest == 0 { 1 } else { 2 }).collect()
    };
    (0..target).map(element).collect()
}

/// Every product of an up-sampling from `x` to `y`: the places in `y` and in `x`, and the weight.
fn each_corner<T: Float>(x: &Array<T>, y: &Array<T>, mut act: impl FnMut(usize, usize, T)) {
    let rows = corners::<T>(x.shape[2], y.shape[2]);
    let columns = corners::<T>(x.shape[3], y.shape[3]);
    for plane in 0..y.shape[0] * y.shape[1] {
        for (i, parts) in rows.iter().enumerate() {
            for (j, others) in columns.iter().enumerate() {
                let to = (plane * y.shape[2] + i) * y.shape[3] + j;
                for &(row, one) in parts {
                    for &(column, other) in others {
                        act(to, (plane * x.shape[2] + row) * x.shape[3] + column, one * other);
                    }
                }
            }
        }
    }
}

// ---------------------------------------------------------------- operations

fn expect<'a>(request: &'a Message, name: &str, dtype: &str, shape: &[i128]) -> Outcome<&'a Tensor> {
    let tensor = request.tensors.get(name).ok_or_else(|| BadRequest(format!("the tensor {name} is missing")))?;
    if tensor.dtype == dtype && tensor.shape == shape {
        return Ok(tensor);
    }
    let found = format!("{} {}", tensor.dtype, show(&tensor.shape));
    Err(BadRequest(format!("the tensor {name} is {found}; due is {dtype} {}", show(shape))))
}

fn describe(request: &Message) -> Outcome<Message> {
    let block = Block::new(read_config(request)?);
    let dtype = request.get("dtype").unwrap_or("F32");
    let mut reply = Message::default();
    for entry in block.layers().flat_map(|layer| block.entries(layer)) {
        let (role, name) = entry.name.split_once('.').expect("a role");
        let key = format!("{}.{name}", if role == "p" { "param" } else { "buffer" });
        reply.say(&key, format!("{} {}", if entry.counter { "I64" } else { dtype }, show(&entry.shape)));
    }
    if let Some(shape) = request.get("shape") {
        let inner = shape.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let sizes: Option<Vec<i128>> = match inner.ok_or_else(|| BadRequest(format!("shape is {shape:?}")))? {
            "" => Some(Vec::new()),
            inner => inner.split(',').map(natural).collect(),
        };
        let sizes = sizes.ok_or_else(|| BadRequest(format!("shape is {shape:?}")))?;
        let shape = block.output_shape(&sizes, false)?;
        reply.say("out", format!("{dtype} {}", show(&shape)));
    }
    Ok(reply)
}

fn call<T: Float>(request: &Message, gradients: bool) -> Outcome<Message> {
    let block = Block::new(read_config(request)?);
    let training = request.get("mode") == Some("train");
    let x = request.tensors.get("x").ok_or_else(|| BadRequest("the tensor x is missing".to_string()))?;
    if x.dtype == "I64" || x.dtype == "BOOL" {
        return Err(InvalidInput(format!("`x` is {}; allowed are F32 and F64", x.dtype)));
    }
    let shape = block.output_shape(&x.shape, training)?;
    let mut due = vec!["x".to_string()];
    let mut reply = Message::default();
    let mut state = State::new();
    for entry in block.layers().flat_map(|layer| block.entries(layer)) {
        let dtype = if entry.counter { "I64" } else { T::NAME };
        let tensor = expect(request, &entry.name, dtype, &entry.shape)?;
        due.push(entry.name.clone());
        if !entry.counter {
            state.insert(entry.name, T::read(&tensor.bytes));
        } else if training && !gradients {
            let count = i64::from_le_bytes(tensor.bytes.as_slice().try_into().expect("8 bytes"));
            reply.put_bytes(entry.name, "I64", &[], (count + 1).to_le_bytes().to_vec());
        }
    }
    if gradients {
        due.push("dy".to_string());
    }
    if let Some(name) = request.tensors.keys().find(|name| !due.contains(name)) {
        return Err(BadRequest(format!("the tensor {name} is one too many")));
    }
    let array = |shape: &[i128], bytes: &[u8]| Array {
        shape: [0, 1, 2, 3].map(|axis| shape[axis] as usize),
        data: T::read(bytes),
    };
    let input = array(&x.shape, &x.bytes);
    let mut call = Call { block: &block, state: &state, training, buffers: State::new(), gradients: State::new() };
    let (mut y, tape) = call.forward(&block.residual, &input);
    let (shortcut, other_tape) = call.forward(&block.shortcut, &input);
    if !gradients {
        y.data.iter_mut().zip(&shortcut.data).for_each(|(one, other)| *one += *other);
        reply.put("y".to_string(), &shape, &y.data);
        call.buffers.into_iter().for_each(|(name, data)| reply.put(name, &[data.len() as i128], &data));
        return Ok(reply);
    }
    let dy = array(&shape, &expect(request, "dy", T::NAME, &shape)?.bytes);
    let mut dx = call.backward(&block.residual, &tape, &dy);
    let other = call.backward(&block.shortcut, &other_tape, &dy);
    dx.data.iter_mut().zip(&other.data).for_each(|(one, other)| *one += *other);
    reply.put("dx".to_string(), &x.shape, &dx.data);
    for (name, data) in call.gradients {
        let shape = &request.tensors[&name.replacen("d.", "p.", 1)].shape;
        reply.put(name, shape, &data);
    }
    Ok(reply)
}

/// Numbers in [-1, 1) that depend on `seed` alone: SplitMix64, started from its FNV hash.
fn random(seed: &str) -> impl FnMut() -> f64 {
    let mut state = seed
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }
}

/// A new block's state (7.4 to 7.7).
fn init<T: Float>(request: &Message) -> Outcome<Message> {
    let block = Block::new(read_config(request)?);
    let seed = request.get("seed").ok_or_else(|| BadRequest("the seed is missing".to_string()))?;
    let mut reply = Message::default();
    for layer in block.layers() {
        let limit = 1.0 / ((layer.inputs * layer.kernel[0] * layer.kernel[1]) as f64).sqrt();
        for Entry { name, shape, counter } in block.entries(layer) {
            let mut draw = random(&format!("{seed}/{name}"));
            let one = name.ends_with("weight") || name.ends_with("running_var");
            let value = |_| match layer.kind {
                Kind::Conv => T::of(limit * draw()),
                Kind::Act => T::of(0.25),
                _ => T::of(if one { 1.0 } else { 0.0 }),
            };
            let data: Vec<T> = (0..shape.iter().product()).map(value).collect();
            if counter {
                reply.put_bytes(name, "I64", &[], vec![0; 8]);
            } else {
                reply.put(name, &shape, &data);
            }
        }
    }
    Ok(reply)
}

fn hello() -> Message {
    let mut reply = Message::default();
    for (key, value) in [
        ("protocol", "1"),
        ("name", "mdnc-port-rust"),
        ("version", "0.1.0"),
        ("language", "Rust"),
        ("ops", "describe,forward,backward,init"),
        ("modes", "train,eval"),
        ("dtypes", "F32,F64"),
        ("accumulation", "float32"),
        ("determinism", "bitwise"),
    ] {
        reply.say(key, value);
    }
    reply
}

/// What PROTOCOL.md does not have is a bad request.
fn check(op: &str, request: &Message) -> Outcome<()> {
    let needed: &[&str] = match op {
        "forward" | "backward" => &["mode"],
        "describe" => &["dtype"],
        "init" => &["dtype", "seed"],
        _ => &[],
    };
    for key in needed {
        let text = request.get(key).unwrap_or("");
        let written = match *key {
            "mode" => ["train", "eval"].contains(&text),
            "dtype" => ["F32", "F64", "BF16"].contains(&text),
            _ => natural(text).is_some_and(|seed| seed <= i128::from(i64::MAX)),
        };
        if !written {
            return Err(BadRequest(format!("{key} is {text:?}")));
        }
    }
    Ok(())
}

fn answer(op: &str, request: &Message) -> Outcome<Message> {
    check(op, request)?;
    let types = request.tensors.values().map(|tensor| tensor.dtype.as_str()).chain(request.get("dtype"));
    if types.clone().any(|dtype| dtype == "BF16") {
        return Err(Unsupported("BF16".to_string()));
    }
    let double = types.clone().any(|dtype| dtype == "F64");
    match op {
        "hello" => Ok(hello()),
        "describe" => describe(request),
        "forward" | "backward" if double => call::<f64>(request, op == "backward"),
        "forward" | "backward" => call::<f32>(request, op == "backward"),
        "init" if double => init::<f64>(request),
        "init" => init::<f32>(request),
        _ => Err(Unsupported(op.to_string())),
    }
}

fn main() -> io::Result<()> {
    protocol::serve(answer)
}
