//! Shapes that are only known at a run: from the contents of small inputs a session is bound anew, from data the
//! interpreter finishes the work. Either way results are those of the interpreter.

use lacuna_engine::{Error, InputRef, Options, OutputMut, Session};
use lacuna_ir::{Graph, Tensor, interp, text};

fn session(g: &Graph) -> Session {
    Session::new(g, &Options { threads: Some(2), ..Options::default() }).unwrap()
}

fn counted(dims: &[usize]) -> Tensor {
    let n = dims.iter().product();
    Tensor::from_f32(dims, (0..n).map(|i| (i * 7 % 23) as f32 / 4.0 - 2.0).collect())
}

fn net(shape: &str) -> Graph {
    let source = format!(
        "graph g
input %x: f32[n,6,4]
{shape}
const %w: f32[2,3] = {{1.0, -2.0, 0.5, 3.0, -1.0, 0.25}}
%a: f32[n,6,4] = Relu(%x)
%y: f32[?\"y.0\",?\"y.1\",2] = Reshape(%a, %s)
%z: f32[?\"y.0\",?\"y.1\",3] = MatMul(%y, %w)
%m: f32[n,6,1] = ReduceMean(%a) axes=[2] keep_dims=true
output %z
output %m"
    );
    text::parse(&source).unwrap_or_else(|e| panic!("{source}\n{e}"))
}

#[test]
fn contents_of_shape_inputs_are_part_of_the_binding() {
    let g = net("input %t: i64[2]\nconst %two: i64[1] = {2}\n%s: i64[3] = Concat(%t, %two) axis=0");
    let mut s = session(&g);
    for (n, t) in [(2, [3, -1]), (2, [-1, 12]), (5, [-1, 12]), (5, [0, 12]), (2, [3, -1])] {
        let inputs = [counted(&[n, 6, 4]), Tensor::from_i64(&[2], t.to_vec())];
        assert_eq!(s.run(&inputs).unwrap(), interp::run(&g, &inputs).unwrap(), "{n} {t:?}");
        assert!(s.tail().is_empty(), "{:?}", s.tail());
        assert!(s.steps().iter().any(|step| step.kind == "MatMul" && step.kernel != "reference"));
        // Bound now: the caller can bring the memory.
        let dims = s.output_dims(0);
        let (mut z, mut m) = (vec![0.0; dims.iter().product()], vec![0.0; n * 6]);
        let views: Vec<InputRef<'_>> = inputs.iter().map(InputRef::from).collect();
        s.run_into(&views, &mut [OutputMut::f32(&mut z), OutputMut::f32(&mut m)]).unwrap();
        assert_eq!(Tensor::from_f32(&dims, z), interp::run(&g, &inputs).unwrap()[0]);
    }
    let wrong = [counted(&[2, 6, 4]), Tensor::from_i64(&[2], vec![5, -1])];
    assert!(s.run(&wrong).unwrap_err().to_string().contains("element counts differ"));
    let right = [counted(&[2, 6, 4]), Tensor::from_i64(&[2], vec![4, -1])];
    assert_eq!(s.run(&right).unwrap(), interp::run(&g, &right).unwrap());
}

/// Many bindings leave no more memory behind than one.
#[test]
fn constants_of_a_binding_go_with_it() {
    let g = net("input %t: i64[2]\nconst %two: i64[1] = {2}\n%s: i64[3] = Concat(%t, %two) axis=0");
    let mut s = session(&g);
    let mut run = |n: usize| {
        s.run(&[counted(&[n, 6, 4]), Tensor::from_i64(&[2], vec![n as i64, -1])]).unwrap();
        s.weight_bytes()
    };
    let first = run(1);
    for n in 2..40 {
        assert_eq!(run(n), first);
    }
}

#[test]
fn what_data_decide_is_finished_by_the_interpreter() {
    // A row of a large table is data, not a shape.
    let g = net("input %p: f32[300,3]
const %zero: i64[] = {0}
%q: f32[3] = Gather(%p, %zero) axis=0
%s: i64[3] = Cast(%q) to=i64");
    let mut s = session(&g);
    let kinds: Vec<&str> = s.tail().iter().map(|(_, kind)| *kind).collect();
    assert_eq!(kinds, ["Reshape", "MatMul"]);
    assert_eq!(s.output_dims(0), [0, 0, 3]);
    for (n, target) in [(2, [3.0, 8.0, 2.0]), (2, [24.0, 1.0, 2.0]), (3, [-1.0, 6.0, 2.0])] {
        let mut p = vec![0.5; 900];
        p[..3].copy_from_slice(&target);
        let inputs = [counted(&[n, 6, 4]), Tensor::from_f32(&[300, 3], p)];
        let want = interp::run(&g, &inputs).unwrap();
        assert_eq!(s.run(&inputs).unwrap(), want);
        assert_eq!(s.output_dims(0), want[0].dims);
        let (mut z, mut m) = (vec![0.0; want[0].len()], vec![0.0; n * 6]);
        let views: Vec<InputRef<'_>> = inputs.iter().map(InputRef::from).collect();
        s.run_into(&views, &mut [OutputMut::f32(&mut z), OutputMut::f32(&mut m)]).unwrap();
        assert_eq!(Some(&z[..]), want[0].as_f32());
        let e = s.run_into(&views, &mut [OutputMut::f32(&mut z[1..]), OutputMut::f32(&mut m)]).unwrap_err();
        assert!(
            matches!(&e, Error::Output { .. }) && e.to_string().contains("whose size data decide"),
            "{e}"
        );
    }
    let inputs = [counted(&[2, 6, 4]), Tensor::from_f32(&[300, 3], vec![7.0; 900])];
    assert!(s.run(&inputs).unwrap_err().to_string().contains("element counts differ"));
    let mut other = s.stream(1, 0).unwrap();
    let inputs = [counted(&[2, 6, 4]), Tensor::from_f32(&[300, 3], vec![2.0; 900])];
    assert_eq!(other.run(&inputs).unwrap_err().to_string(), s.run(&inputs).unwrap_err().to_string());
}

/// Height and width may be anything: the network is lowered once, with its residual sum inside a convolution.
#[test]
fn one_session_serves_images_of_any_size() {
    let hex = |n: usize| -> String {
        let bytes = (0..n).flat_map(|i| ((i * 5 % 13) as f32 / 10.0 - 0.6).to_le_bytes());
        bytes.map(|b| format!("{b:02x}")).collect()
    };
    let source = format!(
        "graph g
input %x: f32[n,3,h,w]
const %w1: f32[4,3,3,3] = hex {}
const %w2: f32[4,4,3,3] = hex {}
const %w3: f32[4,3,1,1] = hex {}
%a: f32[n,4,((h+1)/2),((w+1)/2)] = Conv(%x, %w1) kernel=[3,3] stride=[2,2] pads=[1,1,1,1]
%b: f32[n,4,((h+1)/2),((w+1)/2)] = Relu(%a)
%c: f32[n,4,((h+1)/2),((w+1)/2)] = Conv(%b, %w2) kernel=[3,3] pads=[1,1,1,1]
%d: f32[n,4,((h+1)/2),((w+1)/2)] = Conv(%x, %w3) kernel=[1,1] stride=[2,2]
%e: f32[n,4,((h+1)/2),((w+1)/2)] = Add(%c, %d)
%f: f32[n,4,((h+1)/2),((w+1)/2)] = Relu(%e)
%g: f32[n,4,1,1] = GlobalAveragePool(%f)
output %f
output %g",
        hex(108),
        hex(144),
        hex(12)
    );
    let g = text::parse(&source).unwrap();
    let mut s = session(&g);
    let kinds: Vec<&str> = s.lowered().order.iter().map(|&op| s.lowered().op_kind[op].name()).collect();
    assert_eq!(kinds.iter().filter(|k| **k == "FusedConv").count(), 3, "{kinds:?}");
    assert!(!kinds.contains(&"Add"), "{kinds:?}");
    for (n, h, w) in [(1, 8, 8), (2, 7, 5), (1, 1, 1), (3, 33, 18)] {
        let x = [counted(&[n, 3, h, w])];
        let (got, want) = (s.run(&x).unwrap(), interp::run(&g, &x).unwrap());
        for (got, want) in got.iter().zip(&want) {
            assert_eq!(got.dims, want.dims);
            let (a, b) = (got.as_f32().unwrap(), want.as_f32().unwrap());
            assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4), "{n} {h} {w}");
        }
    }
}
