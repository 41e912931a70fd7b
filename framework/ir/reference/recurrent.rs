//! Recurrent ops, step by step. Sums are f32 in the order of the weights; input and recurrent parts are summed apart.

use super::slice::ints;
use super::unary::softplus_value;
use super::{Inputs, Outputs, all_output_dims, f32s, optional, tensor};
use crate::op::{Attr, OpKind};
use crate::shape;
use crate::tensor::Tensor;

/// An activation, by its place in [`crate::params::ACTIVATIONS`], with the usual parameters.
fn activate(which: usize, x: f32) -> f32 {
    match which {
        0 => 1.0 / (1.0 + (-x).exp()),
        1 => x.tanh(),
        2 => x.max(0.0),
        3 => x,
        4 if x < 0.0 => 0.01 * x,
        5 if x <= 1.0 => 0.0,
        8 if x < 0.0 => x.exp_m1(),
        4 | 5 | 8 => x,
        6 => x.tanh(),
        7 => (0.2 * x + 0.5).clamp(0.0, 1.0),
        9 => x / (1.0 + x.abs()),
        _ => softplus_value(x),
    }
}

/// The sizes and operands of one recurrent op.
struct Cell<'a> {
    kind: OpKind,
    seq: usize,
    batch: usize,
    width: usize,
    hidden: usize,
    layout: bool,
    dirs: usize,
    clip: f32,
    /// Activations of each direction.
    functions: Vec<[usize; 3]>,
    /// GRU: the reset gate is applied after the product. LSTM: the forget gate is one minus the input gate.
    flag: bool,
    /// The only direction there is goes from the end.
    backwards: bool,
    x: &'a [f32],
    w: &'a [f32],
    r: &'a [f32],
    bias: Option<&'a [f32]>,
    peepholes: Option<&'a [f32]>,
}

impl Cell<'_> {
    fn gates(&self) -> usize {
        shape::gates(self.kind) as usize
    }

    fn clipped(&self, v: f32) -> f32 {
        v.clamp(-self.clip, self.clip)
    }

    /// Element `h` of gate `g` from the input of a step, and from the state: biases are parts of them.
    fn parts(&self, dir: usize, g: usize, h: usize, x: &[f32], state: &[f32]) -> (f32, f32) {
        let row = (dir * self.gates() + g) * self.hidden + h;
        let dot = |w: &[f32], x: &[f32]| w.iter().zip(x).fold(0.0f32, |sum, (w, x)| sum + w * x);
        let of_x = dot(&self.w[row * self.width..][..self.width], x);
        let of_state = dot(&self.r[row * self.hidden..][..self.hidden], state);
        let half = self.gates() * self.hidden;
        let at = dir * 2 * half + g * self.hidden + h;
        let bias = |i: usize| self.bias.map_or(0.0, |b| b[i]);
        (of_x + bias(at), of_state + bias(at + half))
    }

    /// The state (and cell) after one step.
    fn step(&self, dir: usize, x: &[f32], state: &[f32], cell: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let [f, g, h_fn] = self.functions[dir];
        let n = self.hidden;
        let sum = |gate: usize, h: usize, state: &[f32]| {
            let (a, b) = self.parts(dir, gate, h, x, state);
            a + b
        };
        match self.kind {
            OpKind::LSTM => {
                let peep =
                    |which: usize, h: usize| self.peepholes.map_or(0.0, |p| p[(dir * 3 + which) * n + h]);
                let mut out = (Vec::with_capacity(n), Vec::with_capacity(n));
                for h in 0..n {
                    let input = activate(f, self.clipped(sum(0, h, state) + peep(0, h) * cell[h]));
                    let forget = match self.flag {
                        true => 1.0 - input,
                        false => activate(f, self.clipped(sum(2, h, state) + peep(2, h) * cell[h])),
                    };
                    let new = activate(g, self.clipped(sum(3, h, state)));
                    let c = forget * cell[h] + input * new;
                    let output = activate(f, self.clipped(sum(1, h, state) + peep(1, h) * c));
                    out.0.push(output * activate(h_fn, c));
                    out.1.push(c);
                }
                out
            }
            OpKind::GRU => {
                let update: Vec<f32> = (0..n).map(|h| activate(f, self.clipped(sum(0, h, state)))).collect();
                let reset: Vec<f32> = (0..n).map(|h| activate(f, self.clipped(sum(1, h, state)))).collect();
                let scaled: Vec<f32> = reset.iter().zip(state).map(|(r, s)| r * s).collect();
                let next = |h: usize| {
                    let (a, b) = match self.flag {
                        true => {
                            let (a, b) = self.parts(dir, 2, h, x, state);
                            (a, reset[h] * b)
                        }
                        false => self.parts(dir, 2, h, x, &scaled),
                    };
                    let new = activate(g, self.clipped(a + b));
                    (1.0 - update[h]) * new + update[h] * state[h]
                };
                ((0..n).map(next).collect(), Vec::new())
            }
            _ => ((0..n).map(|h| activate(f, self.clipped(sum(0, h, state)))).collect(), Vec::new()),
        }
    }

    /// Runs every sequence in every direction. `starts`: state and cell.
    fn run(&self, lengths: &[i64], starts: [Option<&[f32]>; 2], dims: &[Vec<usize>]) -> Vec<Vec<f32>> {
        let mut y = vec![0.0f32; dims[0].iter().product()];
        let mut ends = [vec![0.0f32; dims[1].iter().product()], vec![0.0f32; dims[1].iter().product()]];
        for (dir, b) in (0..self.dirs).flat_map(|dir| (0..self.batch).map(move |b| (dir, b))) {
            let at = if self.layout { b * self.dirs + dir } else { dir * self.batch + b } * self.hidden;
            let start = |which: usize| {
                starts[which].map_or(vec![0.0; self.hidden], |s| s[at..][..self.hidden].to_vec())
            };
            let (mut state, mut cell) = (start(0), start(1));
            let length = lengths.get(b).map_or(self.seq, |&n| usize::try_from(n).unwrap_or(0).min(self.seq));
            let backwards = dir == 1 || self.backwards;
            for step in 0..length {
                let t = if backwards { length - 1 - step } else { step };
                let place = if self.layout { b * self.seq + t } else { t * self.batch + b };
                (state, cell) = self.step(dir, &self.x[place * self.width..][..self.width], &state, &cell);
                let out = match self.layout {
                    true => (b * self.seq + t) * self.dirs + dir,
                    false => (t * self.dirs + dir) * self.batch + b,
                };
                y[out * self.hidden..][..self.hidden].copy_from_slice(&state);
            }
            ends[0][at..][..self.hidden].copy_from_slice(&state);
            if self.kind == OpKind::LSTM {
                ends[1][at..][..self.hidden].copy_from_slice(&cell);
            }
        }
        let [state, cell] = ends;
        vec![y, state, cell]
    }
}

/// What the numbers of an op say, whichever op it is.
struct Settings {
    direction: usize,
    clip: f32,
    layout: bool,
    flag: bool,
    functions: Vec<[usize; 3]>,
}

fn evaluate(kind: OpKind, settings: Settings, inputs: Inputs<'_>, dims: Vec<Vec<usize>>) -> Outputs {
    let x = tensor(inputs, 0)?;
    let (seq, batch) = if settings.layout { (x.dims[1], x.dims[0]) } else { (x.dims[0], x.dims[1]) };
    let dirs = tensor(inputs, 1)?.dims[0];
    if (settings.direction == 2) != (dirs == 2) {
        return Err(format!("weights of {dirs} directions do not fit the op's"));
    }
    let floats = |i: usize| optional(inputs, i).and_then(Tensor::as_f32);
    let cell = Cell {
        kind,
        seq,
        batch,
        width: x.dims[2],
        hidden: dims[1][2],
        layout: settings.layout,
        dirs,
        clip: settings.clip,
        functions: settings.functions,
        flag: settings.flag,
        backwards: settings.direction == 1,
        x: f32s(inputs, 0)?,
        w: f32s(inputs, 1)?,
        r: f32s(inputs, 2)?,
        bias: floats(3),
        peepholes: floats(7),
    };
    let lengths = optional(inputs, 4).map_or(Ok(Vec::new()), ints)?;
    let cells = if kind == OpKind::LSTM { floats(6) } else { None };
    let results = cell.run(&lengths, [floats(5), cells], &dims);
    Ok(results.into_iter().zip(&dims).map(|(v, dims)| Tensor::from_f32(dims, v)).collect())
}

pub fn lstm(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = all_output_dims(shape::lstm, attr, inputs)?;
    let [direction, _, clip, layout, coupled, f, g, h, f2, g2, h2] = attr.numbers()?;
    let functions = vec![[f, g, h].map(|p| p.choice()), [f2, g2, h2].map(|p| p.choice())];
    let (direction, clip) = (direction.choice(), clip.float());
    evaluate(
        OpKind::LSTM,
        Settings { direction, clip, layout: layout.flag(), flag: coupled.flag(), functions },
        inputs,
        dims,
    )
}

pub fn gru(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = all_output_dims(shape::gru, attr, inputs)?;
    let [direction, _, clip, layout, after, f, g, f2, g2] = attr.numbers()?;
    let functions = vec![[f, g, g].map(|p| p.choice()), [f2, g2, g2].map(|p| p.choice())];
    let (direction, clip) = (direction.choice(), clip.float());
    evaluate(
        OpKind::GRU,
        Settings { direction, clip, layout: layout.flag(), flag: after.flag(), functions },
        inputs,
        dims,
    )
}

pub fn rnn(attr: &Attr, inputs: Inputs<'_>) -> Outputs {
    let dims = all_output_dims(shape::rnn, attr, inputs)?;
    let [direction, _, clip, layout, f, f2] = attr.numbers()?;
    let functions = vec![[f.choice(); 3], [f2.choice(); 3]];
    let (direction, clip) = (direction.choice(), clip.float());
    evaluate(
        OpKind::RNN,
        Settings { direction, clip, layout: layout.flag(), flag: false, functions },
        inputs,
        dims,
    )
}
