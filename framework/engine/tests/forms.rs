//! Forms in which real files write things down, and the ops that they become: activations, biases beside convolutions,
//! products of dynamically quantised values.

use lacuna_engine::{Options, Session};
use lacuna_ir::{Graph, OpKind, Tensor, interp, text};

/// Small floats, written out as bytes.
fn floats(n: usize) -> String {
    let bytes = (0..n).flat_map(|i| ((i * 5 % 7) as f32 * 0.5 - 1.5).to_le_bytes());
    format!("hex {}", bytes.map(|b| format!("{b:02x}")).collect::<String>())
}

fn bytes(n: usize) -> String {
    format!("hex {}", (0..n).map(|i| format!("{:02x}", i * 37 % 251)).collect::<String>())
}

fn parsed(source: &str) -> Graph {
    text::parse(source).unwrap_or_else(|e| panic!("{e}\n{source}"))
}

/// Runs in the engine near what the interpreter makes of the graph as written; the kinds of ops it became.
fn run(g: &Graph, inputs: &[Tensor], relative: f32) -> Vec<OpKind> {
    let mut session = Session::new(g, &Options::default()).unwrap();
    let got = session.run(inputs).unwrap();
    for (got, want) in got.iter().zip(&interp::run(g, inputs).unwrap()) {
        assert_eq!(got.dims, want.dims);
        let (got, want) = (got.as_f32().unwrap(), want.as_f32().unwrap());
        let size = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let off = got.iter().zip(want).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(off <= relative * size && size > 0.0, "off by {off}, values up to {size}");
    }
    let lowered = session.lowered();
    lowered.order.iter().map(|&op| lowered.op_kind[op]).filter(|k| *k != OpKind::Transpose).collect()
}

fn image(n: usize) -> Tensor {
    let x = (0..n * 3 * 5 * 4).map(|i| (i * 7 % 23) as f32 / 3.0 - 4.0).collect();
    Tensor::from_f32(&[n, 3, 5, 4], x)
}

#[test]
fn activations_that_are_written_out_are_one_op() {
    let numbers = "const %three: f32[] = {3}
const %six: f32[1] = {6}
const %sixth: f32[] = {0.16666667}
const %one: f32[] = {1}
const %half: f32[] = {0.5}
const %root: f32[] = {1.4142135}
const %inverse: f32[] = {0.70710677}
";
    for (kind, body) in [
        // As Paddle writes it.
        (
            OpKind::HardSwish,
            "%a: f32[n,3,5,4] = Add(%x, %three)
%b: f32[n,3,5,4] = Clip(%a) min=0 max=6
%c: f32[n,3,5,4] = Mul(%x, %b)
%y: f32[n,3,5,4] = Div(%c, %six)",
        ),
        (
            OpKind::HardSwish,
            "%a: f32[n,3,5,4] = Add(%three, %x)
%b: f32[n,3,5,4] = Clip(%a) min=0 max=6
%c: f32[n,3,5,4] = Mul(%b, %sixth)
%y: f32[n,3,5,4] = Mul(%c, %x)",
        ),
        (
            OpKind::HardSwish,
            "%a: f32[n,3,5,4] = HardSigmoid(%x) alpha=0.16666667 beta=0.5
%y: f32[n,3,5,4] = Mul(%x, %a)",
        ),
        // As PyTorch's exporter writes it, and with a factor instead of a divisor.
        (
            OpKind::Gelu,
            "%a: f32[n,3,5,4] = Div(%x, %root)
%b: f32[n,3,5,4] = Erf(%a)
%c: f32[n,3,5,4] = Add(%b, %one)
%d: f32[n,3,5,4] = Mul(%x, %c)
%y: f32[n,3,5,4] = Mul(%d, %half)",
        ),
        (
            OpKind::Gelu,
            "%a: f32[n,3,5,4] = Mul(%x, %inverse)
%b: f32[n,3,5,4] = Erf(%a)
%c: f32[n,3,5,4] = Add(%one, %b)
%d: f32[n,3,5,4] = Mul(%half, %x)
%y: f32[n,3,5,4] = Mul(%d, %c)",
        ),
        (
            OpKind::Silu,
            "%a: f32[n,3,5,4] = Sigmoid(%x)
%y: f32[n,3,5,4] = Mul(%a, %x)",
        ),
    ] {
        let g = parsed(&format!("graph g\ninput %x: f32[n,3,5,4]\n{numbers}{body}\noutput %y"));
        assert_eq!(run(&g, &[image(2)], 1e-5), [kind], "{body}");
    }
    // Another slope, another bound, a value that is read elsewhere: not these.
    for body in [
        "%a: f32[n,3,5,4] = HardSigmoid(%x) alpha=0.2 beta=0.5
%y: f32[n,3,5,4] = Mul(%x, %a)",
        "%a: f32[n,3,5,4] = Add(%x, %three)
%b: f32[n,3,5,4] = Clip(%a) min=0 max=3
%c: f32[n,3,5,4] = Mul(%x, %b)
%y: f32[n,3,5,4] = Div(%c, %six)",
        "%s: f32[n,3,5,4] = Sigmoid(%x)
%z: f32[n,3,5,4] = Mul(%s, %x)
%y: f32[n,3,5,4] = Add(%z, %s)",
    ] {
        let g = parsed(&format!("graph g\ninput %x: f32[n,3,5,4]\n{numbers}{body}\noutput %y"));
        let kinds = run(&g, &[image(2)], 1e-5);
        assert!(kinds.len() > 1, "{body}: {kinds:?}");
    }
}

#[test]
fn biases_and_scales_beside_a_convolution_go_into_it() {
    let source = format!(
        "graph g
input %x: f32[n,3,5,4]
const %w: f32[2,3,3,3] = {}
const %scale: f32[1,2,1,1] = {{0.5, -2}}
const %bias: f32[2,1,1] = {{3, 0.25}}
const %two: f32[] = {{2}}
%a: f32[n,2,5,4] = Conv(%x, %w) kernel=[3,3] pads=[1,1,1,1]
%b: f32[n,2,5,4] = Mul(%scale, %a)
%c: f32[n,2,5,4] = Add(%b, %bias)
%d: f32[n,2,5,4] = Sub(%two, %c)
%y: f32[n,2,5,4] = Relu(%d)
output %y",
        floats(54)
    );
    assert_eq!(run(&parsed(&source), &[image(2)], 1e-6), [OpKind::FusedConv]);
}

/// Sums of whole numbers are exact in f32: the result is the interpreter's, bit for bit. The larger layer is one that runs by
/// Winograd's algorithm with other weights, whose sums are not exact.
#[test]
fn products_of_dynamically_quantised_values_are_exact() {
    exact_products(3, 2, [5, 4]);
    exact_products(32, 32, [13, 12]);
}

fn exact_products(c: usize, o: usize, [height, width]: [usize; 2]) {
    let (image, result) = (format!("n,{c},{height},{width}"), format!("n,{o},{height},{width}"));
    let source = format!(
        "graph g
input %x: f32[{image}]
const %w: u8[{o},{c},3,3] = {}
const %wz: u8[] = {{120}}
const %ws: f32[] = {{0.011}}
const %half: f32[] = {{0.5}}
const %m: i8[{width},6] = {}
const %mz: i8[6] = {{0, 1, -2, 3, 0, 5}}
const %ms: f32[6] = {}
%q: u8[{image}], %s: f32[], %z: u8[] = DynamicQuantizeLinear(%x)
%a: i32[{result}] = ConvInteger(%q, %w, %z, %wz) kernel=[3,3] pads=[1,1,1,1]
%t: f32[] = Mul(%s, %ws)
%c: f32[] = Div(%half, %t)
%d: f32[] = Floor(%c)
%e: i32[] = Cast(%d) to=i32
%f: i32[{result}] = Add(%a, %e)
%h: f32[{result}] = Cast(%f) to=f32
%y: f32[{result}] = Mul(%h, %t)
%i: i32[n,{c},{height},6] = MatMulInteger(%q, %m, %z, %mz)
%j: f32[n,{c},{height},6] = Cast(%i) to=f32
%k: f32[6] = Mul(%s, %ms)
%l: f32[n,{c},{height},6] = Mul(%j, %k)
output %y
output %l",
        bytes(o * c * 9),
        bytes(width * 6),
        floats(6)
    );
    let g = parsed(&source);
    for n in [1, 3] {
        let x = (0..n * c * height * width).map(|i| (i * 7 % 23) as f32 / 3.0 - 4.0).collect();
        let x = Tensor::from_f32(&[n, c, height, width], x);
        let kinds = run(&g, &[x], 0.0);
        assert!(kinds.contains(&OpKind::DynamicCentred) && kinds.contains(&OpKind::FusedConv), "{kinds:?}");
        let left = [OpKind::DynamicQuantizeLinear, OpKind::ConvInteger, OpKind::MatMulInteger];
        assert!(!kinds.iter().any(|k| left.contains(k)), "{kinds:?}");
    }
}
