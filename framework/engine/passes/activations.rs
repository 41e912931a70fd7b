//! Activations that files write out become one op: `x * sigmoid(x)` (SiLU), hard-swish, and GELU by the error function.

use super::rewrite::*;
use crate::error::Result;
use crate::target::Target;
use lacuna_ir::op::ClipAttr;
use lacuna_ir::params::Params;
use lacuna_ir::{Attr, DType, Graph, OpId, OpKind, Uses, ValueId};

pub fn fuse_activations(g: &mut Graph, _: &Target) -> Result<usize> {
    let mut uses = g.uses();
    let mut changes = 0;
    for op in g.order.clone() {
        let out = g.outputs_of(op)[0];
        if g.value_dtype[out] != DType::F32 || !matches!(g.op_kind[op], OpKind::Mul | OpKind::Div) {
            continue;
        }
        let Some((kind, attr, x)) = activation(g, &uses, op) else { continue };
        if g.shape(x) != g.shape(out) {
            continue;
        }
        let name = g.op_name[op].clone();
        let y = op_before(g, op, kind, attr, &name, &[x])?;
        g.replace_uses(out, y);
        uses = g.uses();
        changes += 1;
    }
    sweep(g);
    Ok(changes)
}

/// The activation that ends with `op`, and what it is of.
fn activation(g: &Graph, uses: &Uses, op: OpId) -> Option<(OpKind, Attr, ValueId)> {
    let product = Product::ending_with(g, uses, op)?;
    match *product.factors {
        [a, b] if product.constant == 1.0 => {
            let silu = |x, gate| (sigmoid_of(g, uses, gate)? == x).then_some((OpKind::Silu, Attr::None, x));
            silu(a, b).or_else(|| silu(b, a)).or_else(|| hard_swish(g, uses, a, b, 1.0))
        }
        [a, b] if near(product.constant, 0.5) => gelu(g, uses, a, b).or_else(|| gelu(g, uses, b, a)),
        [a, b] => hard_swish(g, uses, a, b, product.constant),
        _ => None,
    }
}

/// A product and quotient of numbers and at most two computed values, over ops that nobody else reads.
struct Product {
    factors: Vec<ValueId>,
    constant: f32,
}

impl Product {
    fn ending_with(g: &Graph, uses: &Uses, op: OpId) -> Option<Product> {
        let mut product = Product { factors: Vec::new(), constant: 1.0 };
        product.gather(g, uses, op, 3)?;
        Some(product)
    }

    fn gather(&mut self, g: &Graph, uses: &Uses, op: OpId, depth: usize) -> Option<()> {
        let [a, b] = [g.input_of(op, 0)?, g.input_of(op, 1)?];
        match (g.op_kind[op], const_scalar(g, a), const_scalar(g, b)) {
            (OpKind::Mul, None, Some(c)) => self.take(g, uses, a, c, depth),
            (OpKind::Mul, Some(c), None) => self.take(g, uses, b, c, depth),
            (OpKind::Div, None, Some(c)) => self.take(g, uses, a, 1.0 / c, depth),
            (OpKind::Mul, None, None) => {
                self.take(g, uses, a, 1.0, depth)?;
                self.take(g, uses, b, 1.0, depth)
            }
            _ => None,
        }
    }

    fn take(&mut self, g: &Graph, uses: &Uses, v: ValueId, factor: f32, depth: usize) -> Option<()> {
        self.constant *= factor;
        let inner = g.producer(v).filter(|&p| matches!(g.op_kind[p], OpKind::Mul | OpKind::Div));
        let inner = inner.filter(|_| depth > 0 && sole_use(g, uses, v).is_some());
        if let Some(inner) = inner {
            let before = (self.factors.len(), self.constant);
            if self.gather(g, uses, inner, depth - 1).is_some() && self.factors.len() <= 2 {
                return Some(());
            }
            self.factors.truncate(before.0);
            self.constant = before.1;
        }
        self.factors.push(v);
        (self.factors.len() <= 2).then_some(())
    }
}

fn near(a: f32, b: f32) -> bool {
    (a - b).abs() <= 1e-6 * b.abs()
}

fn sigmoid_of(g: &Graph, uses: &Uses, v: ValueId) -> Option<ValueId> {
    let sigmoid = made_by(g, v, OpKind::Sigmoid).filter(|_| sole_use(g, uses, v).is_some())?;
    g.input_of(sigmoid, 0)
}

/// `x * clip(x + 3, 0, 6) * (1 / 6)`, or `x * hard_sigmoid(x)` with the slope 1/6 (Howard et al. 2019).
fn hard_swish(
    g: &Graph,
    uses: &Uses,
    a: ValueId,
    b: ValueId,
    constant: f32,
) -> Option<(OpKind, Attr, ValueId)> {
    let gate = |x: ValueId, v: ValueId| {
        let op = g.producer(v).filter(|_| sole_use(g, uses, v).is_some())?;
        match (g.op_kind[op], g.op_attr[op]) {
            (OpKind::Clip, _) => {
                let six = clip_of(g, op) == Some(ClipAttr { min: 0.0, max: 6.0 });
                let sum = made_by(g, g.input_of(op, 0)?, OpKind::Add)?;
                let [p, q] = [g.input_of(sum, 0)?, g.input_of(sum, 1)?];
                let three =
                    p == x && const_scalar(g, q) == Some(3.0) || q == x && const_scalar(g, p) == Some(3.0);
                let alone = sole_use(g, uses, g.outputs_of(sum)[0]).is_some();
                (six && three && alone && near(constant, 1.0 / 6.0)).then_some(())
            }
            (OpKind::HardSigmoid, attr) => {
                let [alpha, beta] = attr.numbers::<2>().ok()?.map(|n| n.float());
                let same = g.input_of(op, 0) == Some(x) && constant == 1.0;
                // Exporters round the slope to 0.1667, too; that is another function.
                (same && near(alpha, 1.0 / 6.0) && beta == 0.5).then_some(())
            }
            _ => None,
        }
    };
    let x = gate(a, b).map(|()| a).or_else(|| gate(b, a).map(|()| b))?;
    Some((OpKind::HardSwish, Attr::None, x))
}

/// `x * (1 + erf(x / sqrt(2)))`, which half of is GELU (Hendrycks and Gimpel 2016).
fn gelu(g: &Graph, uses: &Uses, x: ValueId, v: ValueId) -> Option<(OpKind, Attr, ValueId)> {
    let alone = |v| sole_use(g, uses, v).is_some();
    let sum = made_by(g, v, OpKind::Add).filter(|_| alone(v))?;
    let [p, q] = [g.input_of(sum, 0)?, g.input_of(sum, 1)?];
    let erf = if const_scalar(g, p) == Some(1.0) { q } else { p };
    (const_scalar(g, p) == Some(1.0) || const_scalar(g, q) == Some(1.0)).then_some(())?;
    let erf = made_by(g, erf, OpKind::Erf).filter(|_| alone(erf))?;
    let inner = g.input_of(erf, 0)?;
    let scaled = g.producer(inner).filter(|_| alone(inner))?;
    let scaled = Product::ending_with(g, uses, scaled)?;
    let root = near(scaled.constant, std::f32::consts::FRAC_1_SQRT_2) && *scaled.factors == [x];
    root.then(|| (OpKind::Gelu, Attr::Params(Params::usual(OpKind::Gelu)), x))
}
