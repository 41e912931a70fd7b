//! What holds for any bytes whatever, as an ONNX file. The fuzz targets of `fuzz/` call these functions with what they make
//! up; `fuzzed.rs` calls them with seeds and with everything found so far.

#![allow(dead_code, reason = "each fuzz target calls one of them")]

use lacuna_engine::{Options, Session};
use lacuna_ir::{Attr, Dim, Graph, OpId, Tensor, interp};

/// What every symbol of a model is taken for.
const SIZE: usize = 2;
/// Elements of any one value, ops, and elements read per element written, up to which a model is run: the interpreter
/// bounds its memory, not its time.
const ELEMENTS_MAX: usize = 1 << 12;
const OPS_MAX: usize = 64;

/// A file is read or refused. What is read is a valid graph, which is written and read again, or refused by name.
pub fn load(bytes: &[u8]) -> Option<Graph> {
    let g = lacuna_onnx::parse(bytes.to_vec().into()).ok()?;
    lacuna_ir::verify::verify(&g).unwrap_or_else(|e| panic!("a graph that was read is invalid: {e}"));
    if let Ok(written) = lacuna_onnx::to_bytes(&g, &Default::default()) {
        lacuna_onnx::parse(written.into()).unwrap_or_else(|e| panic!("what was written is refused: {e}"));
    }
    Some(g)
}

/// What is read runs or is refused, in the interpreter and in the engine; where both run, types and dims agree.
pub fn load_and_run(bytes: &[u8]) {
    let Ok(g) = lacuna_onnx::parse(bytes.to_vec().into()) else { return };
    let Some(inputs) = inputs(&g) else { return };
    if !is_small(&g) || !ends_soon(&g, true) {
        return;
    }
    let wanted = interp::run(&g, &inputs);
    let options = Options { threads: Some(1), ..Options::default() };
    let got = Session::new(&g, &options).and_then(|mut session| session.run(&inputs));
    if let (Ok(wanted), Ok(got)) = (wanted, got) {
        assert_eq!(wanted.len(), got.len());
        for (w, g) in wanted.iter().zip(&got) {
            assert_eq!((w.dtype(), &w.dims), (g.dtype(), &g.dims));
        }
    }
}

/// Small numbers, some of them negative. `None` for models that ask for more.
fn inputs(g: &Graph) -> Option<Vec<Tensor>> {
    g.inputs
        .iter()
        .map(|&v| {
            let dims: Vec<usize> =
                g.shape(v).iter().map(|d| d.fixed().map_or(SIZE, |n| n as usize)).collect();
            let n = lacuna_ir::element_count(&dims).filter(|&n| n <= ELEMENTS_MAX)?;
            let bytes: Vec<u8> = (0..n).flat_map(|i| number(i, g.value_dtype[v].size())).collect();
            Tensor::from_bytes(g.value_dtype[v], &dims, &bytes)
        })
        .collect()
}

fn number(i: usize, size: usize) -> Vec<u8> {
    match size {
        1 => vec![(i % 2) as u8],
        4 => (i as f32 * 0.75 - 2.0).to_le_bytes().to_vec(),
        _ => (i as i64 % 3 - 1).to_le_bytes().to_vec(),
    }
}

fn is_small(g: &Graph) -> bool {
    let elements = |v| g.shape(v).iter().try_fold(1u64, |n, d| n.checked_mul(size(d))).unwrap_or(u64::MAX);
    g.order.len() <= OPS_MAX && g.value_name.ids().all(|v| elements(v) <= ELEMENTS_MAX as u64)
}

/// Whether loops make few turns: not many are asked for, or a caller says how many, outside of all bodies.
fn ends_soon(g: &Graph, outermost: bool) -> bool {
    let ends = |op: OpId| {
        let Attr::Loop(_) = g.op_attr[op] else { return true };
        g.input_of(op, 0).is_some_and(|turns| match g.const_tensor(turns) {
            Some(t) => t.as_i64().is_some_and(|n| n.iter().all(|&n| n <= 8)),
            None => outermost && g.inputs.contains(&turns),
        })
    };
    g.order.iter().copied().all(ends)
        && g.bodies.iter().all(|(_, body)| is_small(body) && ends_soon(body, false))
}

fn size(d: &Dim) -> u64 {
    d.fixed().unwrap_or(SIZE as u64)
}
