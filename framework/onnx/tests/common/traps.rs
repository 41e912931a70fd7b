//! Forms in which real files were found to differ from what one would expect (attributes of old operator sets, odd
//! pads, unused domains ...): one file each, for the comparison with onnxruntime.

use super::build::*;
use lacuna_onnx::proto::tensor_proto::DataType;
use lacuna_onnx::proto::*;

/// Half-odd weights that are not symmetric, so that a shifted window shows.
fn weights(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 7 % 11) as f32 * 0.25 - 1.0).collect()
}

/// From x f32 of these dims to y.
fn from(dims: &[i64], opset: i64, nodes: Vec<NodeProto>, initializer: Vec<TensorProto>) -> ModelProto {
    let mut m = model(opset, nodes, initializer);
    let dims: Vec<D> = dims.iter().map(|&d| D::N(d)).collect();
    m.graph.as_mut().unwrap().input[0] = value("x", DataType::Float, &dims);
    m
}

pub fn models() -> Vec<(String, ModelProto)> {
    let mut all = Vec::new();
    let mut add = |name: &str, m: ModelProto| all.push((format!("trap_{name}"), m));

    // Before operator set 13 a softmax runs over all axes from its own on.
    let softmax =
        |opset, attrs| from(&[2, 3, 4], opset, vec![node("Softmax", &["x"], &["y"], attrs)], vec![]);
    add("softmax_9_over_two_axes", softmax(9, vec![int("axis", 1)]));
    add("softmax_12_usual_axis", softmax(12, vec![]));
    add("softmax_13_last_axis_only", softmax(13, vec![int("axis", -1)]));

    // Axes are attributes before operator set 13, and operands since.
    for (op, dims) in [("Squeeze", &[2, 1, 3, 1][..]), ("Unsqueeze", &[2, 3])] {
        add(
            &format!("{op}_11"),
            from(dims, 11, vec![node(op, &["x"], &["y"], vec![ints("axes", &[1, 3])])], vec![]),
        );
        let axes = vec![i64s("axes", &[2], &[3, 1])];
        add(&format!("{op}_13"), from(dims, 13, vec![node(op, &["x", "axes"], &["y"], vec![])], axes));
    }
    add("Squeeze_11_all", from(&[1, 3, 1], 11, vec![node("Squeeze", &["x"], &["y"], vec![])], vec![]));

    // Bounds that are absent, one of them or both.
    let low = || vec![f32s("low", &[], &[0.25])];
    add("clip_13_min_only", from(&[7], 13, vec![node("Clip", &["x", "low"], &["y"], vec![])], low()));
    add(
        "clip_13_min_and_nothing",
        from(&[7], 13, vec![node("Clip", &["x", "low", ""], &["y"], vec![])], low()),
    );
    add(
        "clip_6_attributes",
        from(&[7], 6, vec![node("Clip", &["x"], &["y"], vec![float("max", 0.5)])], vec![]),
    );

    // Pads on one side, and the pools of a pyramid, which keep the size.
    let pool = |kernel: i64, stride: i64, pads: &[i64]| {
        let attrs =
            vec![ints("kernel_shape", &[kernel; 2]), ints("strides", &[stride; 2]), ints("pads", pads)];
        from(&[1, 2, 14, 15], 11, vec![node("MaxPool", &["x"], &["y"], attrs)], vec![])
    };
    add("max_pool_pads_at_the_end", pool(3, 2, &[0, 0, 1, 1]));
    for (kernel, pad) in [(5, 2), (9, 4), (13, 6)] {
        add(&format!("max_pool_{kernel}_same"), pool(kernel, 1, &[pad; 4]));
    }

    // One group for each channel, windows of 5, strides of one axis.
    let conv = |channels: i64, kernel: i64, strides: &[i64]| {
        let pad = kernel / 2;
        let attrs = vec![int("group", channels), ints("strides", strides), ints("pads", &[pad; 4])];
        let w = f32s("w", &[channels, 1, kernel, kernel], &weights((channels * kernel * kernel) as usize));
        from(&[1, channels, 9, 8], 11, vec![node("Conv", &["x", "w"], &["y"], attrs)], vec![w])
    };
    add("depthwise_5x5", conv(8, 5, &[1, 1]));
    add("depthwise_384", conv(384, 3, &[1, 1]));
    add("depthwise_stride_2_1", conv(6, 3, &[2, 1]));
    add("depthwise_stride_1_2", conv(6, 5, &[1, 2]));
    let attrs = vec![ints("strides", &[2, 1]), ints("pads", &[1; 4])];
    let w = f32s("w", &[4, 3, 3, 3], &weights(108));
    add("conv_stride_2_1", from(&[1, 3, 8, 7], 12, vec![node("Conv", &["x", "w"], &["y"], attrs)], vec![w]));

    // Nearest pixels by scales, as detectors enlarge.
    let scales = |h: f32, w: f32| vec![f32s("roi", &[0], &[]), f32s("scales", &[4], &[1.0, 1.0, h, w])];
    for (name, h, w) in [("twice", 2.0, 2.0), ("odd", 1.5, 2.5), ("smaller", 0.5, 0.75)] {
        let nodes = vec![node("Resize", &["x", "roi", "scales"], &["y"], attrs_nearest())];
        add(&format!("resize_11_{name}"), from(&[1, 2, 4, 6], 11, nodes, scales(h, w)));
    }

    let attrs = vec![ints("strides", &[2, 2]), ints("kernel_shape", &[2, 2])];
    let operands = vec![f32s("w", &[3, 4, 2, 2], &weights(48)), f32s("b", &[4], &weights(4))];
    let nodes = vec![node("ConvTranspose", &["x", "w", "b"], &["y"], attrs)];
    add("conv_transpose_2x2", from(&[1, 3, 5, 4], 11, nodes, operands));

    // Slopes of Paddle's and PyTorch's exporters, and the swish that is written out with them.
    for (name, alpha) in [("a_fifth", 0.2), ("a_sixth", 0.1667), ("usual", 0.2)] {
        let attrs = if name == "usual" { vec![] } else { vec![float("alpha", alpha), float("beta", 0.5)] };
        add(
            &format!("hard_sigmoid_{name}"),
            from(&[9], 11, vec![node("HardSigmoid", &["x"], &["y"], attrs)], vec![]),
        );
    }
    let constant =
        |name: &str, v: f32| node("Constant", &[], &[name], vec![tensor("value", f32s("", &[], &[v]))]);
    let swish = vec![
        constant("three", 3.0),
        constant("zero", 0.0),
        constant("six", 6.0),
        node("Add", &["x", "three"], &["a"], vec![]),
        node("Clip", &["a", "zero", "six"], &["b"], vec![]),
        node("Mul", &["x", "b"], &["c"], vec![]),
        node("Div", &["c", "six"], &["y"], vec![]),
    ];
    add("hard_swish_written_out", from(&[1, 3, 4, 4], 11, swish, vec![]));

    // All weights in Constant nodes.
    let w = node("Constant", &[], &["w"], vec![tensor("value", f32s("", &[2, 3, 1, 1], &weights(6)))]);
    let nodes = vec![w, node("Conv", &["x", "w"], &["y"], vec![])];
    add("weights_in_constant_nodes", from(&[1, 3, 4, 4], 12, nodes, vec![]));

    // Images in NHWC, turned first.
    let nodes = vec![
        node("Transpose", &["x"], &["t"], vec![ints("perm", &[0, 3, 1, 2])]),
        node("Conv", &["t", "w"], &["y"], vec![ints("pads", &[1; 4])]),
    ];
    add("nhwc_input", from(&[1, 6, 5, 3], 9, nodes, vec![f32s("w", &[2, 3, 3, 3], &weights(54))]));

    // Domains that no node is of.
    let mut unused = from(&[4], 12, vec![node("Relu", &["x"], &["y"], vec![])], vec![]);
    for domain in ["com.microsoft.nchwc", "ai.onnx.ml", "com.microsoft", "ai.onnx.preview.training"] {
        unused.opset_import.push(OperatorSetIdProto { domain: domain.into(), version: 1 });
    }
    add("unused_domains", unused);

    // Height and width are named, and a shape is computed of them.
    let mut named = from(
        &[1, 2, 4, 6],
        13,
        vec![
            node("Shape", &["x"], &["shape"], vec![]),
            node("Slice", &["shape", "two", "four"], &["size"], vec![]),
            node("Mul", &["size", "twice"], &["larger"], vec![]),
            node("Slice", &["shape", "none", "two"], &["front"], vec![]),
            node("Concat", &["front", "larger"], &["sizes"], vec![int("axis", 0)]),
            node("Resize", &["x", "", "", "sizes"], &["y"], attrs_nearest()),
        ],
        vec![
            i64s("none", &[1], &[0]),
            i64s("two", &[1], &[2]),
            i64s("four", &[1], &[4]),
            i64s("twice", &[1], &[2]),
        ],
    );
    named.graph.as_mut().unwrap().input[0] =
        value("x", DataType::Float, &[D::P("batch"), D::N(2), D::P("height"), D::P("width")]);
    add("sizes_are_computed", named);
    flows(&mut all);
    all
}

fn attrs_nearest() -> Vec<AttributeProto> {
    vec![
        string("mode", "nearest"),
        string("coordinate_transformation_mode", "asymmetric"),
        string("nearest_mode", "floor"),
    ]
}

/// Graphs within graphs, and what is read as a loop.
fn flows(all: &mut Vec<(String, ModelProto)>) {
    let formal = |name: &str, dims: &[D]| value(name, DataType::Float, dims);
    let nodes = vec![
        node("Add", &["sum", "part"], &["next"], vec![]),
        node("Identity", &["next"], &["seen"], vec![]),
    ];
    for (name, axis, backwards, out) in [("forwards", 0, 0, 0), ("backwards", 0, 1, 1), ("along_1", 1, 0, 1)]
    {
        let dims = if axis == 0 { [4, 3] } else { [3, 4] };
        let formals = vec![formal("sum", &[D::N(3)]), formal("part", &[D::N(3)])];
        let attrs = vec![
            int("num_scan_inputs", 1),
            body("body", formals, nodes.clone(), &["next", "seen"]),
            ints("scan_input_axes", &[axis]),
            ints("scan_input_directions", &[backwards]),
            ints("scan_output_axes", &[out]),
            ints("scan_output_directions", &[backwards]),
        ];
        let scan = node("Scan", &["start", "x"], &["last", "y"], attrs);
        all.push((
            format!("scan_{name}"),
            from(&dims, 17, vec![scan], vec![f32s("start", &[3], &[1.0, 2.0, 3.0])]),
        ));
    }
    let spread = |n: usize| (0..n as i32).map(|i| i * 37 % 251 - 125).collect::<Vec<i32>>();
    for (name, dirs) in [("forward", 1i64), ("reverse", 1), ("bidirectional", 2)] {
        let lstm = NodeProto {
            domain: "com.microsoft".into(),
            ..node(
                "DynamicQuantizeLSTM",
                &["x", "w", "r", "b", "", "h", "c", "", "ws", "wz", "rs", "rz"],
                &["y", "last", "cell"],
                vec![string("direction", name), int("hidden_size", 4)],
            )
        };
        let d = dirs as usize;
        let floats = |name: &str, dims: &[i64], n: usize, scale: f32| {
            let values: Vec<f32> = (0..n).map(|i| ((i * 29 % 31) as f32 / 31.0 - 0.5) * scale).collect();
            f32s(name, dims, &values)
        };
        let initializers = vec![
            small("w", DataType::Int8, &[dirs, 6, 16], &spread(d * 96)),
            small("r", DataType::Int8, &[dirs, 4, 16], &spread(d * 64)),
            floats("b", &[dirs, 32], d * 32, 0.5),
            floats("h", &[dirs, 1, 4], d * 4, 0.9),
            floats("c", &[dirs, 1, 4], d * 4, 1.5),
            f32s("ws", &[dirs], &[0.004, 0.006][..d]),
            small("wz", DataType::Int8, &[dirs], &[0, 0][..d]),
            f32s("rs", &[dirs], &[0.005, 0.003][..d]),
            small("rz", DataType::Int8, &[dirs], &[0, 0][..d]),
        ];
        let mut m = from(&[5, 1, 6], 17, vec![lstm], initializers);
        m.opset_import.push(OperatorSetIdProto { domain: "com.microsoft".into(), version: 1 });
        all.push((format!("dynamic_lstm_{name}"), m));
    }
}
