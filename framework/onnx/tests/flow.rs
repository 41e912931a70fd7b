//! Choices, loops and scans as files write them: what they become, what they compute, and what is refused.

mod common;

use common::build::*;
use lacuna_ir::{Graph, OpKind, Tensor, interp, text, verify};
use lacuna_onnx::proto::tensor_proto::DataType;
use lacuna_onnx::proto::*;
use lacuna_onnx::{Error, parse, to_bytes};

const F: DataType = DataType::Float;

fn with(inputs: Vec<ValueInfoProto>, opset: i64, nodes: Vec<NodeProto>, outputs: &[&str]) -> ModelProto {
    let mut m = model(opset, nodes, vec![]);
    let graph = m.graph.as_mut().unwrap();
    graph.input = inputs;
    graph.output =
        outputs.iter().map(|o| ValueInfoProto { name: o.to_string(), ..Default::default() }).collect();
    m
}

fn read(m: &ModelProto) -> Graph {
    let g = parse(bytes(m)).unwrap_or_else(|e| panic!("{e}"));
    verify::verify(&g).unwrap();
    // What is written is read again, and computes the same.
    let again = parse(to_bytes(&g, &Default::default()).unwrap().into()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(again.outputs.len(), g.outputs.len());
    let text = text::print_full(&g);
    assert_eq!(text::print_full(&text::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))), text);
    g
}

fn run(g: &Graph, inputs: &[Tensor]) -> Vec<Tensor> {
    let made = interp::run(g, inputs).unwrap_or_else(|e| panic!("{e}"));
    let again = parse(to_bytes(g, &Default::default()).unwrap().into()).unwrap();
    assert_eq!(interp::run(&again, inputs).unwrap(), made);
    made
}

fn f(dims: &[usize], x: &[f32]) -> Tensor {
    Tensor::from_f32(dims, x.to_vec())
}

fn flag(v: u8) -> Tensor {
    Tensor::from_bool(&[], vec![v])
}

fn kinds(g: &Graph) -> Vec<OpKind> {
    g.order.iter().map(|&op| g.op_kind[op]).collect()
}

fn choice(condition: &str, yes: Vec<NodeProto>, no: Vec<NodeProto>) -> NodeProto {
    let bodies = vec![body("then_branch", vec![], yes, &["yes"]), body("else_branch", vec![], no, &["no"])];
    node("If", &[condition], &["y"], bodies)
}

#[test]
fn a_choice_that_is_known_is_its_branch() {
    let x = || value("x", F, &[D::P("n"), D::N(2)]);
    // The rank says it; the other branch holds what nobody supports.
    let m = with(
        vec![x()],
        17,
        vec![
            node("Shape", &["x"], &["shape"], vec![]),
            node("Size", &["shape"], &["rank"], vec![]),
            node("Constant", &[], &["two"], vec![int("value_int", 2)]),
            node("Equal", &["rank", "two"], &["is_matrix"], vec![]),
            choice(
                "is_matrix",
                vec![node("Neg", &["x"], &["yes"], vec![])],
                vec![node("What", &["x"], &["no"], vec![])],
            ),
        ],
        &["y"],
    );
    let g = read(&m);
    assert!(kinds(&g).contains(&OpKind::Neg) && g.bodies.is_empty());
    assert_eq!(run(&g, &[f(&[1, 2], &[1.0, -2.0])]), [f(&[1, 2], &[-1.0, 2.0])]);
}

#[test]
fn a_choice_that_is_not_known_keeps_both_and_captures_through_graphs() {
    let inner = choice(
        "d",
        vec![node("Add", &["x", "t"], &["yes"], vec![])],
        vec![node("Mul", &["x", "k"], &["no"], vec![])],
    );
    let mut inner = inner;
    inner.output = vec!["inner".to_string()];
    let outer = [
        body("then_branch", vec![], vec![node("Neg", &["x"], &["t"], vec![]), inner], &["inner"]),
        // An output that is a value of the graph around.
        body("else_branch", vec![], vec![], &["k"]),
    ];
    let scalar = |name| value(name, DataType::Bool, &[]);
    let list = |name| value(name, F, &[D::P("n")]);
    let m = with(
        vec![scalar("c"), scalar("d"), list("x"), list("k")],
        17,
        vec![node("If", &["c"], &["y"], outer.to_vec())],
        &["y"],
    );
    let g = read(&m);
    let args = |c, d| [flag(c), flag(d), f(&[2], &[1.0, 2.0]), f(&[2], &[5.0, 7.0])];
    for (c, d, want) in [(1, 1, [0.0, 0.0]), (1, 0, [5.0, 14.0]), (0, 1, [5.0, 7.0])] {
        assert_eq!(run(&g, &args(c, d)), [f(&[2], &want)], "{c} {d}");
    }
}

/// As PyTorch writes `x.squeeze(1)` where the dimension may be 1.
#[test]
fn a_squeeze_that_may_be_is_read_as_if_it_were() {
    let axes = || node("Constant", &[], &["axis"], vec![ints("value_ints", &[1])]);
    let m = with(
        vec![value("x", F, &[D::P("n"), D::P("m")])],
        17,
        vec![
            axes(),
            node("Constant", &[], &["one"], vec![ints("value_ints", &[1])]),
            node("Shape", &["x"], &["shape"], vec![]),
            node("Gather", &["shape", "axis"], &["columns"], vec![]),
            node("Equal", &["columns", "one"], &["is_one"], vec![]),
            choice(
                "is_one",
                vec![node("Squeeze", &["x", "axis"], &["yes"], vec![])],
                vec![node("Identity", &["x"], &["no"], vec![])],
            ),
        ],
        &["y"],
    );
    let g = read(&m);
    assert_eq!(run(&g, &[f(&[2, 1], &[1.0, 2.0])]), [f(&[2], &[1.0, 2.0])]);
    let e = interp::run(&g, &[f(&[1, 2], &[1.0, 2.0])]).unwrap_err().to_string();
    assert!(e.contains("condition does not hold"), "{e}");
}

#[test]
fn states_of_a_loop_may_grow() {
    let formals =
        vec![value("i", DataType::Int64, &[]), value("on", DataType::Bool, &[]), value("all", F, &[D::N(1)])];
    let nodes = vec![
        node("Concat", &["all", "x"], &["more"], vec![int("axis", 0)]),
        node("Identity", &["on"], &["still"], vec![]),
        node("ReduceSum", &["more"], &["sum"], vec![int("keepdims", 0)]),
    ];
    let m = with(
        vec![value("trips", DataType::Int64, &[]), value("x", F, &[D::N(1)])],
        17,
        vec![node(
            "Loop",
            &["trips", "", "x"],
            &["last", "sums"],
            vec![body("body", formals, nodes, &["still", "more", "sum"])],
        )],
        &["last", "sums"],
    );
    let g = read(&m);
    let made = run(&g, &[Tensor::from_i64(&[], vec![3]), f(&[1], &[2.0])]);
    assert_eq!(made, [f(&[4], &[2.0; 4]), f(&[3], &[4.0, 6.0, 8.0])]);
}

/// Running sums of x along an axis, forwards or backwards, laid out along another axis.
fn scan(axis: i64, backwards: i64, out_axis: i64, out_backwards: i64) -> ModelProto {
    let formals = vec![value("sum", F, &[D::N(2)]), value("part", F, &[D::N(2)])];
    let nodes = vec![
        node("Add", &["sum", "part"], &["next"], vec![]),
        node("Identity", &["next"], &["seen"], vec![]),
    ];
    let attributes = vec![
        int("num_scan_inputs", 1),
        body("body", formals, nodes, &["next", "seen"]),
        ints("scan_input_axes", &[axis]),
        ints("scan_input_directions", &[backwards]),
        ints("scan_output_axes", &[out_axis]),
        ints("scan_output_directions", &[out_backwards]),
    ];
    let dims = if axis == 0 { [D::P("n"), D::N(2)] } else { [D::N(2), D::P("n")] };
    with(
        vec![value("start", F, &[D::N(2)]), value("x", F, &dims)],
        17,
        vec![node("Scan", &["start", "x"], &["last", "all"], attributes)],
        &["last", "all"],
    )
}

#[test]
fn scans_are_loops() {
    let start = || f(&[2], &[10.0, 20.0]);
    let g = read(&scan(0, 0, 0, 0));
    assert_eq!(g.shape(g.outputs[1])[0], g.shape(g.inputs[1])[0], "as many results as parts");
    let x = f(&[3, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let all = f(&[3, 2], &[11.0, 22.0, 14.0, 26.0, 19.0, 32.0]);
    assert_eq!(run(&g, &[start(), x.clone()]), [f(&[2], &[19.0, 32.0]), all]);
    // From the end, along the last axis, laid out along the last axis from the end.
    let x = f(&[2, 3], &[1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
    let made = run(&read(&scan(-1, 1, 1, 1)), &[start(), x]);
    assert_eq!(made, [f(&[2], &[19.0, 32.0]), f(&[2, 3], &[19.0, 18.0, 15.0, 32.0, 30.0, 26.0])]);
    // Operator set 8: for each sample of a batch.
    let formals = vec![value("sum", F, &[D::N(2)]), value("part", F, &[D::N(2)])];
    let nodes = vec![
        node("Add", &["sum", "part"], &["next"], vec![]),
        node("Identity", &["next"], &["seen"], vec![]),
    ];
    let attributes = vec![int("num_scan_inputs", 1), body("body", formals, nodes, &["next", "seen"])];
    let m = with(
        vec![value("start", F, &[D::P("b"), D::N(2)]), value("x", F, &[D::P("b"), D::P("n"), D::N(2)])],
        8,
        vec![node("Scan", &["", "start", "x"], &["last", "all"], attributes)],
        &["last", "all"],
    );
    let (start, x) =
        (f(&[2, 2], &[0.0, 0.0, 1.0, 1.0]), f(&[2, 2, 2], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]));
    let made = run(&read(&m), &[start, x]);
    assert_eq!(made[0], f(&[2, 2], &[4.0, 6.0, 13.0, 15.0]));
    assert_eq!(made[1], f(&[2, 2, 2], &[1.0, 2.0, 4.0, 6.0, 6.0, 7.0, 13.0, 15.0]));
}

#[test]
fn what_is_wrong_with_a_body_is_said() {
    let c = || value("c", DataType::Bool, &[]);
    let x = || value("x", F, &[D::N(2)]);
    let relu = |out: &str| vec![node("Relu", &["x"], &[out], vec![])];
    let one = |n: NodeProto| with(vec![c(), x()], 17, vec![n], &["y"]);
    let on = |part: Vec<NodeProto>| {
        let formals = vec![value("i", DataType::Int64, &[]), value("on", DataType::Bool, &[])];
        one(node("Loop", &["", "c"], &["y"], vec![body("body", formals, part, &["on", "part"])]))
    };
    let mut deep = node("Relu", &["x"], &["part"], vec![]);
    for depth in 0..18 {
        let formals = vec![value("i", DataType::Int64, &[]), value("on", DataType::Bool, &[])];
        let out = if depth == 17 { "y" } else { "part" };
        deep = node("Loop", &["", "c"], &[out], vec![body("body", formals, vec![deep], &["on", "part"])]);
    }
    let cases: Vec<(ModelProto, &str)> = vec![
        (
            one(node("If", &["c"], &["y"], vec![body("then_branch", vec![], relu("yes"), &["yes"])])),
            "'else_branch': is absent",
        ),
        (one(choice("x", relu("yes"), relu("no"))), "must be bool"),
        (one(choice("c", relu("yes"), vec![node("Neg", &["nothing"], &["no"], vec![])])), "'nothing'"),
        (
            one(choice("c", relu("yes"), vec![node("Neg", &["y"], &["no"], vec![])])),
            "depends on its own result",
        ),
        (
            one(choice(
                "c",
                vec![node("A", &["x"], &["yes"], vec![])],
                vec![node("B", &["x"], &["no"], vec![])],
            )),
            "2 nodes",
        ),
        (one(choice("c", relu("yes"), vec![node("Shape", &["x"], &["no"], vec![])])), "number and types"),
        (
            one(node(
                "If",
                &["c"],
                &["y"],
                vec![
                    body("then_branch", vec![x()], relu("yes"), &["yes"]),
                    body("else_branch", vec![], relu("no"), &["no"]),
                ],
            )),
            "branches take nothing",
        ),
        (
            one(node("Loop", &["", "c"], &["y"], vec![body("body", vec![], vec![], &[])])),
            "its body takes 0 values",
        ),
        (
            one(node("Loop", &["", "c"], &["y"], vec![body("body", vec![c(), c()], vec![], &["c", "c"])])),
            "'c' as bool, it is i64",
        ),
        (
            on(vec![node("Relu", &["x"], &["on"], vec![]), node("Neg", &["x"], &["part"], vec![])]),
            "'on' stands twice",
        ),
        (one(deep), "deeper than 16"),
        (
            one(node(
                "Scan",
                &["x"],
                &["y"],
                vec![int("num_scan_inputs", 3), body("body", vec![], vec![], &[])],
            )),
            "num_scan_inputs",
        ),
    ];
    for (m, want) in cases {
        let e = parse(bytes(&m)).expect_err(want);
        assert!(e.to_string().contains(want), "{e}\nis not: {want}");
    }
}

/// Loops within loops whose states change at every level are read again at every level: that stops at a number of
/// nodes, soon.
#[test]
fn small_files_that_nest_do_not_take_long() {
    let mut inner = node("Concat", &["s", "s"], &["t"], vec![int("axis", 0)]);
    for depth in 0..14 {
        let formals = vec![
            value("i", DataType::Int64, &[]),
            value("on", DataType::Bool, &[]),
            value("s", F, &[D::N(1)]),
        ];
        let start = if depth == 13 { "x" } else { "s" };
        inner = node(
            "Loop",
            &["trips", "", start],
            &["t"],
            vec![body("body", formals, vec![inner], &["on", "t"])],
        );
    }
    inner.output = vec!["y".to_string()];
    let m =
        with(vec![value("trips", DataType::Int64, &[]), value("x", F, &[D::N(1)])], 17, vec![inner], &["y"]);
    match parse(bytes(&m)) {
        Ok(g) => verify::verify(&g).unwrap(),
        Err(e) => assert!(matches!(e, Error::TooLarge { .. }), "{e}"),
    }
}
