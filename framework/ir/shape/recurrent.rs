//! Recurrent ops.

use super::{
    Fact, Facts, InferInput, Inputs, check_dims, expect_like, input, joined, number, optional, rank, show,
    typed,
};
use crate::op::{Attr, OpKind};
use crate::tensor::{DType, Dim};

/// What a recurrent op has of everything: gates, and whether it has a cell beside its state.
pub fn gates(kind: OpKind) -> u64 {
    match kind {
        OpKind::LSTM => 4,
        OpKind::GRU => 3,
        _ => 1,
    }
}

pub fn lstm(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let [_, hidden, clip, layout] = attr.numbers()?;
    recurrent(OpKind::LSTM, hidden.int(), clip.float(), layout.flag(), inputs)
}

pub fn gru(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let [_, hidden, clip, layout] = attr.numbers()?;
    recurrent(OpKind::GRU, hidden.int(), clip.float(), layout.flag(), inputs)
}

pub fn rnn(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let [_, hidden, clip, layout] = attr.numbers()?;
    recurrent(OpKind::RNN, hidden.int(), clip.float(), layout.flag(), inputs)
}

/// x `[seq,batch,in]` (`[batch,seq,in]` with `layout`), w `[dirs,gates·H,in]`, r `[dirs,gates·H,H]`, optional bias
/// `[dirs,2·gates·H]`, lengths i32 `[batch]`, state (and cell) `[dirs,batch,H]`, peepholes `[dirs,3·H]`.
fn recurrent(kind: OpKind, hidden: i64, clip: f32, layout: bool, inputs: Inputs<'_>) -> Facts {
    if clip < 0.0 || clip.is_nan() {
        return Err(format!("clip is {clip}: it must be a bound, and is left out if there is none"));
    }
    let [mut seq, mut batch, width] = rank(0, &typed(inputs, 0, DType::F32)?)?;
    if layout {
        std::mem::swap(&mut seq, &mut batch);
    }
    let w = typed(inputs, 1, DType::F32)?;
    let [dirs, rows, _] = rank(1, &w)?;
    let (dirs_n, rows, gates) =
        (number(1, "the direction count", dirs)?, number(1, "the row count", rows)?, gates(kind));
    if !(1..=2).contains(&dirs_n) || rows == 0 || !rows.is_multiple_of(gates) {
        return Err(format!(
            "input 1 is {}: it must hold {gates} gates in one or two directions",
            show(w.dims)
        ));
    }
    let h = rows / gates;
    if hidden != 0 && u64::try_from(hidden) != Ok(h) {
        return Err(format!("hidden_size is {hidden}, the weights are for {h}"));
    }
    let fixed = Dim::Fixed;
    expect_like(1, &w, &[dirs, fixed(rows), width])?;
    expect_like(2, &typed(inputs, 2, DType::F32)?, &[dirs, fixed(rows), fixed(h)])?;
    let state = if layout { [batch, dirs, fixed(h)] } else { [dirs, batch, fixed(h)] };
    let float = |i: usize, dims: &[Dim]| -> Result<(), String> {
        match optional(inputs, i) {
            Some(_) => expect_like(i, &typed(inputs, i, DType::F32)?, dims),
            None => Ok(()),
        }
    };
    float(3, &[dirs, fixed(2 * rows)])?;
    if optional(inputs, 4).is_some() {
        expect_like(4, &typed(inputs, 4, DType::I32)?, &[batch])?;
    }
    float(5, &state)?;
    if kind == OpKind::LSTM {
        float(6, &state)?;
        float(7, &[dirs, fixed(3 * h)])?;
    }
    let all = if layout { vec![batch, seq, dirs, fixed(h)] } else { vec![seq, dirs, batch, fixed(h)] };
    check_dims(&all)?;
    let fact = |dims: Vec<Dim>| Fact { dtype: DType::F32, dims };
    let mut facts = vec![fact(all), fact(state.to_vec())];
    if kind == OpKind::LSTM {
        facts.push(fact(state.to_vec()));
    }
    Ok(facts)
}

/// Scores `[N,C,..]`, targets `[N,..]` of integers, optional weights `[C]`.
pub fn loss(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let [reduction] = attr.numbers()?;
    let (x, target) = (typed(inputs, 0, DType::F32)?, input(inputs, 1)?);
    if x.dims.len() < 2 || !matches!(target.dtype, DType::I64 | DType::I32) {
        return Err("takes f32 scores of at least 2 dimensions and integer targets".to_string());
    }
    let dims = [&x.dims[..1], &x.dims[2..]].concat();
    expect_like(1, &target, &dims)?;
    if optional(inputs, 2).is_some() {
        expect_like(2, &typed(inputs, 2, DType::F32)?, &x.dims[1..2])?;
    }
    let dims: Vec<Dim> = dims.iter().zip(target.dims).map(|(&a, &b)| joined(a, b)).collect();
    let dims = if reduction.choice() == 1 { dims } else { vec![] };
    check_dims(&dims)?;
    Ok(vec![Fact { dtype: DType::F32, dims }])
}

/// As [`loss`]; second result: logarithms of chances, of the shape of the scores.
pub fn cross_entropy(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let mut facts = loss(attr, inputs)?;
    facts.push(Fact { dtype: DType::F32, dims: input(inputs, 0)?.dims.to_vec() });
    Ok(facts)
}

/// The dims of each label of an einsum's operands, and those of its result.
pub struct Labels {
    /// Which label each dimension of each operand has.
    pub operands: Vec<Vec<usize>>,
    pub result: Vec<usize>,
    pub dims: Vec<Dim>,
}

/// Reads an equation for operands of these dims. Dimensions of an ellipsis are labels of their own, aligned at the end.
pub fn labels(equation: &str, inputs: &[&[Dim]]) -> Result<Labels, String> {
    let text: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = match text.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (text.as_str(), None),
    };
    let terms: Vec<&str> = left.split(',').collect();
    if terms.len() != inputs.len() {
        return Err(format!(
            "the equation '{equation}' is for {} operands, not {}",
            terms.len(),
            inputs.len()
        ));
    }
    // Names of labels: letters, then the dimensions of the ellipsis from the last one on.
    let mut names: Vec<(char, usize)> = Vec::new();
    let mut dims: Vec<Dim> = Vec::new();
    let mut widest = 0;
    let mut operands = Vec::new();
    for (term, shape) in terms.iter().zip(inputs) {
        let letters = term.replace("...", "").chars().count();
        let more = match term.contains("...") {
            true => shape.len().checked_sub(letters),
            false => (shape.len() == letters).then_some(0),
        };
        let more = more.ok_or_else(|| format!("'{term}' does not fit {}", show(shape)))?;
        widest = widest.max(more);
        let expanded = spelled(term, more)?;
        let mut row = Vec::new();
        for (name, &dim) in expanded.into_iter().zip(*shape) {
            let at = names.iter().position(|&n| n == name).unwrap_or_else(|| {
                names.push(name);
                dims.push(Dim::Fixed(1));
                names.len() - 1
            });
            dims[at] = super::broadcast_dims(&[dims[at]], &[dim])?[0];
            row.push(at);
        }
        operands.push(row);
    }
    let result_names = match right {
        Some(right) => spelled(right, widest)?,
        None => {
            let count = |c: char| left.chars().filter(|&l| l == c).count();
            let mut single: Vec<char> =
                left.chars().filter(|&c| c.is_alphabetic() && count(c) == 1).collect();
            single.sort_unstable();
            let ellipsis = (0..widest).rev().map(|i| ('.', i));
            ellipsis.chain(single.into_iter().map(|c| (c, 0))).collect()
        }
    };
    let find = |name: &(char, usize)| {
        names
            .iter()
            .position(|n| n == name)
            .ok_or_else(|| format!("'{}' is in no operand of '{equation}'", name.0))
    };
    let result = result_names.iter().map(find).collect::<Result<Vec<usize>, String>>()?;
    Ok(Labels { operands, result, dims })
}

/// The labels of a term, its ellipsis written out as `count` dimensions.
fn spelled(term: &str, count: usize) -> Result<Vec<(char, usize)>, String> {
    let mut out = Vec::new();
    let parts: Vec<&str> = term.split("...").collect();
    if parts.len() > 2 || parts.iter().any(|p| !p.chars().all(char::is_alphabetic)) {
        return Err(format!("'{term}' is no list of letters with at most one ellipsis"));
    }
    for (i, part) in parts.iter().enumerate() {
        if i == 1 {
            out.extend((0..count).rev().map(|k| ('.', k)));
        }
        out.extend(part.chars().map(|c| (c, 0)));
    }
    Ok(out)
}

pub fn einsum(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Equation(equation) = attr else { return Err(super::wrong_attr(attr)) };
    let seen: Vec<InferInput<'_>> = (0..inputs.len()).map(|i| input(inputs, i)).collect::<Result<_, _>>()?;
    for (i, x) in seen.iter().enumerate() {
        super::expect_dtype(i, x, seen[0].dtype)?;
    }
    if seen[0].dtype == DType::Bool {
        return Err("input 0 is bool, it must be a number".to_string());
    }
    let shapes: Vec<&[Dim]> = seen.iter().map(|x| x.dims).collect();
    let l = labels(equation.as_str(), &shapes)?;
    // The loops run over every label: their product is bounded as a result's elements are.
    check_product(&l.dims)?;
    super::one(seen[0].dtype, l.result.iter().map(|&i| l.dims[i]).collect())
}

fn check_product(dims: &[Dim]) -> Result<(), String> {
    let product = dims.iter().filter_map(|d| d.fixed()).try_fold(1u64, |p, d| p.checked_mul(d.max(1)));
    match product {
        Some(n) if n <= crate::tensor::TENSOR_ELEMENTS_MAX => Ok(()),
        _ => Err("the sum has too many terms".to_string()),
    }
}

/// Square matrices to their determinants.
pub fn det(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = typed(inputs, 0, DType::F32)?;
    match x.dims {
        [front @ .., h, w] if super::may_equal(*h, *w) => super::one(DType::F32, front.to_vec()),
        dims => Err(format!("{} are no square matrices", show(dims))),
    }
}

/// Instance normalisation: x `[N,C,..]`, scale and bias `[C]`. Group normalisation too.
pub fn channel_norm(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let x = typed(inputs, 0, DType::F32)?;
    let channels = *x.dims.get(1).ok_or("input 0 needs at least 2 dimensions [N,C,...]")?;
    if let Attr::Params(_) = attr {
        let [_, groups] = attr.numbers()?;
        let (n, groups) = (number(0, "the channel count", channels)?, groups.int());
        if u64::try_from(groups).ok().is_none_or(|g| g == 0 || !n.is_multiple_of(g)) {
            return Err(format!("{groups} groups do not divide {n} channels"));
        }
    }
    for i in 1..3 {
        expect_like(i, &typed(inputs, i, DType::F32)?, &[channels])?;
    }
    super::one(DType::F32, x.dims.to_vec())
}

/// x `[N,C,..]`: local response normalisation.
pub fn lrn(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let [_, _, _, size] = attr.numbers()?;
    let x = typed(inputs, 0, DType::F32)?;
    if size.int() < 1 || x.dims.len() < 2 {
        return Err("needs channels and a size of at least 1".to_string());
    }
    super::one(DType::F32, x.dims.to_vec())
}
