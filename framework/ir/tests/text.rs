//! The text form: golden files, shape rules by example, and what hostile text gets.
//! `UPDATE_GOLDEN=1` writes the golden files anew.

use lacuna_ir::{Error, Graph, Tensor, interp, text, verify};
use std::path::PathBuf;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn check_golden(name: &str, have: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(golden(name), have).unwrap();
    }
    let want = std::fs::read_to_string(golden(name)).unwrap();
    assert_eq!(have, want, "{name} differs: run with UPDATE_GOLDEN=1 if the new text is right");
}

#[test]
fn a_written_graph_prints_as_the_golden_files_say() {
    let source = std::fs::read_to_string(golden("every_field.in.ir")).unwrap();
    let g = text::parse(&source).unwrap();
    let full = text::print_full(&g);
    check_golden("every_field.full.ir", &full);
    check_golden("every_field.brief.ir", &text::print(&g));
    assert_eq!(text::print_full(&text::parse(&full).unwrap()), full);
}

#[test]
fn the_brief_text_cannot_be_read_back() {
    let g = text::parse(&std::fs::read_to_string(golden("every_field.in.ir")).unwrap()).unwrap();
    let error = text::parse(&text::print(&g)).unwrap_err();
    assert!(error.to_string().contains("print the graph in full"), "{error}");
}

#[test]
fn floats_and_names_survive_bit_for_bit() {
    let bits =
        [0x7fc0_0001u32, 0xffc0_0000, 0x8000_0000, 1, 0x7f80_0000, 0xff80_0000, 0x3dcc_cccd, 0x7f7f_ffff];
    let t = Tensor::from_f32(&[8], bits.map(f32::from_bits).to_vec());
    let mut g = Graph::new("odd \"name\"\n");
    g.metadata.push(("a key".to_string(), "tab\t, back\\slash, \u{1F980}, \u{7}".to_string()));
    let a = g.add_tensor("_", &t);
    let b = g.add_tensor("_", &t);
    let symbol = lacuna_ir::Dim::Symbol(g.symbol("8th"));
    let x = g.add_input("in put}", lacuna_ir::DType::F32, &[symbol, lacuna_ir::Dim::Fixed(8)]);
    let none = lacuna_ir::Attr::None;
    let y = g.add_op(lacuna_ir::OpKind::Add, none, "# odd", &[a, b], &["%y@2"]).unwrap()[0];
    let z = g.add_op(lacuna_ir::OpKind::Add, none, "", &[x, y], &["_"]).unwrap()[0];
    g.outputs = vec![z, a];
    // Two outputs of one name cannot be told apart by a caller.
    assert!(verify::verify(&g).is_err());
    g.outputs = vec![z];
    verify::verify(&g).unwrap();
    let text = text::print_full(&g);
    let back = text::parse(&text).unwrap();
    assert_eq!(text::print_full(&back), text);
    assert_eq!(back.name, g.name);
    assert_eq!(back.metadata, g.metadata);
    assert_eq!(back.symbols.as_slice(), g.symbols.as_slice());
    assert!(back.consts.as_slice().contains(&t.to_shared_bytes()));
}

fn graph(lines: &str) -> Result<Graph, Error> {
    text::parse(lines)
}

/// One op on inputs: what its shape rule must say, written as the type of the result.
#[test]
fn shape_rules_pass_symbols_through() {
    let good = [
        (
            "input %x: f32[b,3,8,8]\nconst %w: f32[1,3,1,1] = {1,2,3}",
            "f32[b,1,4,4] = Conv(%x, %w) kernel=[1,1] stride=[2,2]",
        ),
        ("input %x: f32[b,1,h,8]\nconst %w: f32[1,1,1,1] = {1}", "f32[b,1,h,8] = Conv(%x, %w) kernel=[1,1]"),
        ("input %x: f32[1,1,5,5]", "f32[1,1,3,3] = MaxPool(%x) kernel=[2,2] stride=[2,2] ceil_mode=true"),
        ("input %x: f32[1,1,5,5]", "f32[1,1,2,2] = MaxPool(%x) kernel=[2,2] stride=[2,2]"),
        // In ceil mode a window that would start in the padding behind the data does not count.
        (
            "input %x: f32[1,1,3,3]",
            "f32[1,1,2,2] = MaxPool(%x) kernel=[2,2] stride=[3,3] pads=[1,1,1,1] ceil_mode=true",
        ),
        ("input %x: f32[b,2,3]\ninput %y: f32[3]", "f32[b,2,3] = Add(%x, %y)"),
        ("input %x: f32[b,1]\ninput %y: f32[1,n]", "f32[b,n] = Mul(%x, %y)"),
        ("input %x: f32[b,2]\ninput %y: f32[b,2]", "f32[b,2] = Sub(%x, %y)"),
        ("input %x: f32[b,2,3]", "f32[b,6] = Flatten(%x) axis=1"),
        ("input %x: f32[b,1,1]", "f32[b,1] = Flatten(%x) axis=-1"),
        ("input %x: f32[2,3]", "f32[1,6] = Flatten(%x) axis=0"),
        ("input %x: f32[2,3]", "f32[6,1] = Flatten(%x) axis=2"),
        ("input %x: f32[b,4,6]\nconst %s: i64[2] = {0,-1}", "f32[b,24] = Reshape(%x, %s)"),
        ("input %x: f32[b,4,6]\nconst %s: i64[2] = {-1,24}", "f32[b,24] = Reshape(%x, %s)"),
        ("input %x: f32[b,4,6]\nconst %s: i64[3] = {-1,3,8}", "f32[b,3,8] = Reshape(%x, %s)"),
        ("input %x: f32[4,6]\nconst %s: i64[3] = {2,-1,3}", "f32[2,4,3] = Reshape(%x, %s)"),
        ("input %x: f32[0,6]\nconst %s: i64[2] = {6,-1}", "f32[6,0] = Reshape(%x, %s)"),
        ("input %x: f32[b,7,h]", "f32[h,b,7] = Transpose(%x) perm=[2,0,1]"),
        ("input %x: f32[b,7]", "f32[7,b] = Transpose(%x) perm=[]"),
        ("input %x: f32[b,7]\ninput %y: f32[b,2]", "f32[b,9] = Concat(%x, %y) axis=-1"),
        ("input %x: f32[b,3]\ninput %y: f32[3,5]", "f32[b,5] = MatMul(%x, %y)"),
        ("input %x: f32[3]\ninput %y: f32[3]", "f32[] = MatMul(%x, %y)"),
        (
            "input %x: f32[b,3]\ninput %y: f32[5,3]\ninput %z: f32[5]",
            "f32[b,5] = Gemm(%x, %y, %z) trans_b=true",
        ),
        ("input %x: f32[b,3,4,4]", "f32[b,3,1,1] = ReduceMean(%x) axes=[2,3] keep_dims=true"),
        ("input %x: f32[b,3,4,4]", "f32[3] = ReduceMean(%x) axes=[0,-1,2]"),
    ];
    for (above, line) in good {
        let (dtype, _) = line.split_once(" = ").unwrap();
        let g = graph(&format!("graph g\n{above}\n%out: {line}\noutput %out"))
            .unwrap_or_else(|e| panic!("{line}: {e}"));
        let printed = text::print(&g);
        assert!(printed.contains(&format!("%out: {dtype} = ")), "{printed}");
    }
}

/// Hostile or wrong graphs: each gets an error that says what is wrong.
#[test]
fn shape_rules_refuse_what_does_not_fit() {
    let x = "input %x: f32[b,4,8,8]\nconst %w: f32[2,4,1,1] = {1,2,3,4,5,6,7,8}";
    let bad = [
        (x, "f32[b,2,8,8] = Conv(%x, %w) kernel=[1,1] stride=[0,1]", "must be at least 1"),
        (x, "f32[b,2,8,8] = Conv(%x, %w) kernel=[1,1] dilation=[1,0]", "must be at least 1"),
        (x, "f32[b,2,8,8] = Conv(%x, %w) kernel=[1,1] group=0", "group 0"),
        (x, "f32[b,2,8,8] = Conv(%x, %w) kernel=[1,1] group=3", "group 3"),
        (x, "f32[b,2,8,8] = Conv(%x, %w) kernel=[1,1] group=2", "2 channels per group"),
        (x, "f32[b,2,8,8] = Conv(%x, %w) kernel=[3,3]", "holds a kernel of [1,1]"),
        (
            x,
            "f32[b,2,8,8] = Conv(%x, %w) kernel=[1,1] pads=[4294967295,4294967295,4294967295,4294967295]",
            "more than",
        ),
        (x, "f32[b,2,8,8] = Conv(%x) kernel=[1,1]", "takes 2 to 3 inputs"),
        (x, "f32[b,2,8,8] = Conv(%x, _) kernel=[1,1]", "input 1 is absent"),
        (x, "f32[b,2,8,8] = Conv(%w, %x) kernel=[1,1]", "holds a kernel of [8,8]"),
        (x, "f32[b,2,9,8] = Conv(%x, %w) kernel=[1,1]", "Conv makes f32[b,2,8,8]"),
        (x, "f32[b,4,8,8] = MaxPool(%x) kernel=[9,1]", "does not fit 8 elements"),
        (x, "f32[b,4,8,8] = MaxPool(%x) kernel=[2,2] pads=[2,0,0,0]", "must be smaller than the window"),
        (x, "f32[b,4,8,8] = MaxPool(%x) kernel=[0,0]", "at least 1"),
        (
            "input %x: f32[1,1,h,8]",
            "f32[1,1,h,8] = MaxPool(%x) kernel=[2,2]",
            "MaxPool makes f32[1,1,(h-1),7]",
        ),
        ("input %x: f32[1,1,0,8]", "f32[1,1,1,1] = GlobalAveragePool(%x)", "average over no elements"),
        (x, "f32[b,4,8,8] = Softmax(%x) axis=4", "axis 4 does not exist"),
        (x, "f32[b,4,8,8] = Softmax(%x) axis=-5", "axis -5 does not exist"),
        (x, "f32[b,4,8,8] = Transpose(%x) perm=[0,1,2,2]", "not a permutation"),
        (x, "f32[b,4,8,8] = Transpose(%x) perm=[0,1,2,-1]", "not a permutation"),
        (x, "f32[b,4] = ReduceMean(%x) axes=[2,-2]", "given twice"),
        (x, "f32[b,4] = Flatten(%x) axis=2", "Flatten makes f32[(4*b),64]"),
        (x, "f32[b,4] = Clip(%x) min=1.0 max=NaN", "min must not exceed max"),
        (x, "f32[b,4,8,8] = Add(%x, %w)", "makes f32[2,4,8,8]"),
        ("input %x: f32[b,2]\ninput %y: f32[c,3]", "f32[b,2] = Add(%x, %y)", "do not broadcast"),
        ("input %x: f32[2]\ninput %y: i64[2]", "f32[2] = Add(%x, %y)", "input 1 is i64"),
        ("input %x: f32[b,6]\nconst %s: i64[2] = {3,-1}", "f32[3,2] = Reshape(%x, %s)", "makes f32[3,(2*b)]"),
        (
            "input %x: f32[b,6]\nconst %s: i64[2] = {-1,5}",
            "f32[b,5] = Reshape(%x, %s)",
            "makes f32[((6*b)/5),5]",
        ),
        ("input %x: f32[4,6]\nconst %s: i64[2] = {-1,-1}", "f32[4,6] = Reshape(%x, %s)", "only one -1"),
        (
            "input %x: f32[4,6]\nconst %s: i64[2] = {-1,7}",
            "f32[4,6] = Reshape(%x, %s)",
            "element counts differ",
        ),
        (
            "input %x: f32[0,6]\nconst %s: i64[2] = {0,-1}",
            "f32[0,6] = Reshape(%x, %s)",
            "element counts differ",
        ),
        ("input %x: f32[4]\nconst %s: i64[2] = {4,0}", "f32[4] = Reshape(%x, %s)", "0 copies"),
        ("input %x: f32[4]\nconst %s: i64[1] = {-4}", "f32[4] = Reshape(%x, %s)", "positive, 0 or -1"),
        (
            "input %x: f32[4]\ninput %s: i64[n]",
            "f32[4] = Reshape(%x, %s)",
            "the length of input 1 is symbolic",
        ),
        ("input %x: f32[b,2]\ninput %y: f32[b,2]", "f32[2,2] = Concat(%x, %y) axis=0", "makes f32[(2*b),2]"),
        ("input %x: f32[2,3]\ninput %y: f32[2,3]", "f32[2,3] = MatMul(%x, %y)", "inner dimensions"),
        ("input %x: f32[]\ninput %y: f32[]", "f32[] = MatMul(%x, %y)", "scalar"),
        (
            "input %x: f32[8589934592]\ninput %y: f32[8589934592,1]",
            "f32[2] = Add(%x, %y)",
            "more than 8589934592 elements",
        ),
        ("input %x: f32[8589934592,0,8589934592]", "f32[0] = Flatten(%x) axis=3", "more than"),
        (
            "input %x: u8[1,1,1,1]",
            "u8[1,1,1,1] = QGlobalAvgPool(%x) x_zero=0 mult=1.0 zero=0 lo=9 hi=8",
            "lo <= hi",
        ),
        (
            "input %x: u8[1]",
            "u8[1] = QAdd(%x, %x) a_mult=1.0 a_zero=256 b_mult=1.0 b_zero=0 zero=0 lo=0 hi=8",
            "0..=255",
        ),
        ("input %x: u8[4]\ninput %t: u8[255]", "u8[4] = QLookup(%x, %t)", "must be [256]"),
        (
            "input %x: u8[2]\ninput %y: u8[3]",
            "u8[2] = QMul(%x, %y) a_zero=0 b_zero=0 mult=1.0 zero=0 lo=0 hi=8",
            "do not broadcast",
        ),
        ("input %x: f32[1,1,2,2]", "f32[1,1,2,2] = Resize(%x) scale=[0,1]", "at least 1"),
        ("input %x: f32[1,1,h,2]", "f32[1,1,2,2] = Resize(%x) scale=[2,1]", "makes f32[1,1,(2*h),2]"),
        (
            "input %x: f32[2]\ninput %s: f32[3]\ninput %z: u8[3]",
            "u8[2] = QuantizeLinear(%x, %s, %z) axis=0",
            "has [2]",
        ),
        (
            "input %x: f32[2]\ninput %s: f32[]\ninput %z: u8[2]",
            "u8[2] = QuantizeLinear(%x, %s, %z) axis=0",
            "zero point has shape",
        ),
        (
            "input %x: f32[2]\ninput %s: f32[]\ninput %z: i32[]",
            "i32[2] = QuantizeLinear(%x, %s, %z) axis=0",
            "must be u8 or i8",
        ),
    ];
    for (above, line, why) in bad {
        let error = match graph(&format!("graph g\n{above}\n%out: {line}\noutput %out")) {
            Ok(g) => panic!("accepted {line}:\n{}", text::print(&g)),
            Err(e) => e.to_string(),
        };
        assert!(error.contains(why), "{line}: {error}");
    }
}

#[test]
fn text_errors_name_the_line() {
    let bad = [
        ("grph g", 1, "begins with graph"),
        ("graph g\ninput %x f32[1]", 2, "expected ':'"),
        ("input %x: f16[1]", 1, "no element type"),
        ("input %x: f32[1,1,1,1,1,1,1,1,1]", 1, "at most 8 dimensions"),
        ("input %x: f32[99999999999999999999]", 1, "no dimension that fits"),
        ("input %x: f32[1]\ninput %x: f32[1]", 2, "write it as '%x@2'"),
        ("input %x@0: f32[1]", 1, "counts from 1"),
        ("input %x@18446744073709551615: f32[1]", 1, "write it as"),
        ("input %\"x: f32[1]", 1, "no closing quote"),
        ("input %\"\\q\": f32[1]", 1, "unknown escape"),
        ("input %\"\\u{d800}\": f32[1]", 1, "must name a character"),
        ("const %c: f32[2] = {1}", 1, "4 bytes do not fill"),
        ("const %c: f32[b] = {1}", 1, "must be numbers"),
        ("const %c: u8[1] = {256}", 1, "no element of this type"),
        ("const %c: u8[1] = {1", 1, "no closing '}'"),
        ("const %c: u8[1] = hex 0", 1, "pairs of hexadecimal digits"),
        ("const %c: u8[1] = hex 0g", 1, "pairs of hexadecimal digits"),
        ("const %c: f32[18446744073709551615] = {}", 1, "more than"),
        ("output %x", 1, "not made by any line above"),
        ("input %x: f32[1]\n%y: f32[1] = Wlu(%x)", 2, "no kind of op"),
        ("input %x: f32[1]\n%y: f32[1] = Relu(%x) alpha=1", 2, "no field 'alpha'"),
        ("input %x: f32[1]\n%y: f32[1] = Clip(%x) min=1", 2, "max is missing"),
        ("input %x: f32[1]\n%y: f32[1] = Clip(%x) min=1 min=2", 2, "given twice"),
        ("input %x: f32[1]\n%y: f32[1] = Softmax(%x) axis=x", 2, "not a number"),
        ("input %x: f32[1]\n%y: f32[1] = Transpose(%x) perm=0", 2, "must be a list"),
        ("input %x: f32[1]\n%y: f32[1], %z: f32[1] = Relu(%x)", 2, "2 were named"),
        ("input %x: f32[1]\n%y: f32[1] = Relu(%x) ?", 2, "unexpected '?'"),
    ];
    for (source, line, why) in bad {
        match graph(source) {
            Err(Error::Text { line: at, why: text }) => {
                assert!(at == line && text.contains(why), "{source:?}: line {at}: {text}")
            }
            other => panic!("{source:?}: {other:?}"),
        }
    }
    assert!(graph("graph g\ninput %x: f32[1]").unwrap_err().to_string().contains("no outputs"));
}

/// Thousands of damaged texts: an error or a graph, never a panic.
#[test]
fn damaged_text_never_panics() {
    let source = std::fs::read_to_string(golden("every_field.in.ir")).unwrap();
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let mut below = |n: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % n
    };
    let tokens = [
        "0",
        "-1",
        "4294967295",
        "18446744073709551615",
        "%",
        "\"",
        "[",
        "]",
        "b",
        "_",
        "@",
        "{}",
        "#",
        "NaN",
        "é",
    ];
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..4000 {
        let mut chars: Vec<char> = source.chars().collect();
        for _ in 0..1 + below(3) {
            let at = below(chars.len());
            let cut = below(4).min(chars.len() - at);
            let token = tokens[below(tokens.len())];
            chars.splice(at..at + cut, token.chars());
        }
        match text::parse(&chars.into_iter().collect::<String>()) {
            Ok(g) => {
                let full = text::print_full(&g);
                assert_eq!(text::print_full(&text::parse(&full).unwrap()), full);
                accepted += 1;
            }
            Err(_) => refused += 1,
        }
    }
    assert!(accepted > 50 && refused > 1000, "{accepted} accepted, {refused} refused");
}

#[test]
fn the_interpreter_says_which_input_or_op_is_wrong() {
    let g = graph("input %x: f32[b,2]\ninput %y: f32[b,2]\n%s: f32[b,2] = Add(%x, %y)  # sum\noutput %s")
        .unwrap();
    let t = |dims: &[usize]| Tensor::zeros(lacuna_ir::DType::F32, dims);
    let why = |inputs: &[Tensor]| interp::run(&g, inputs).unwrap_err().to_string();
    assert!(why(&[t(&[3, 2])]).contains("takes 2 inputs, 1 were given"));
    assert!(why(&[t(&[3, 2]), t(&[4, 2])]).contains("'b' is Some(3)"), "{}", why(&[t(&[3, 2]), t(&[4, 2])]));
    assert!(why(&[t(&[3, 3]), t(&[3, 3])]).contains("input 'x': has 3 in dimension 1, the graph takes 2"));
    assert!(why(&[t(&[3]), t(&[3, 2])]).contains("dimensions"));
    assert!(why(&[Tensor::from_u8(&[1, 2], vec![0, 0]), t(&[1, 2])]).contains("is u8, the graph takes f32"));
    let lying = Tensor { dims: vec![usize::MAX, 2], elements: lacuna_ir::Elements::F32(vec![]) };
    assert!(why(&[lying, t(&[1, 2])]).contains("elements"));

    let (x, y) = (Tensor::from_f32(&[1, 2], vec![1., 2.]), Tensor::from_f32(&[1, 2], vec![10., 20.]));
    let sum = interp::run_named(&g, &[("y", &y), ("x", &x)]).unwrap();
    assert_eq!(sum[0].as_f32().unwrap(), [11., 22.]);
    assert!(interp::run_named(&g, &[("y", &y)]).unwrap_err().to_string().contains("input 'x': is missing"));
    assert!(interp::run_named(&g, &[("z", &y)]).unwrap_err().to_string().contains("no such input"));
    let all = interp::run_all(&g, &[x.clone(), y]).unwrap();
    assert_eq!(all[g.inputs[0]].as_ref(), Some(&x));
    assert_eq!(all[g.outputs[0]], Some(sum[0].clone()));

    let by_zero =
        graph("const %a: i32[1] = {1}\nconst %z: i32[1] = {0}\n%q: i32[1] = Div(%a, %z)  # q\noutput %q")
            .unwrap();
    assert!(
        interp::run(&by_zero, &[])
            .unwrap_err()
            .to_string()
            .contains("op 'q' (Div): integer division by zero")
    );
    let huge =
        graph("input %x: f32[n,1]\ninput %y: f32[1,n]\n%p: f32[n,n] = Add(%x, %y)  # p\noutput %p").unwrap();
    let n = 90_000;
    let error = interp::run(&huge, &[t(&[n, 1]), t(&[1, n])]).unwrap_err().to_string();
    assert!(error.contains("op 'p' (Add)") && error.contains("use a smaller batch"), "{error}");
}
