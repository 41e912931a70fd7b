//! Files as other exporters write them: forms that this crate reads and never writes, of any operator set.

use super::build::*;
use lacuna_onnx::proto::tensor_proto::DataType;
use lacuna_onnx::proto::*;

/// Name and model; each has one output `y` and the input x f32[2,3,6,5], or one that is stated otherwise.
pub fn models() -> Vec<(String, ModelProto)> {
    let mut all: Vec<(String, ModelProto)> = Vec::new();
    windows(&mut all);
    quantisation(&mut all);
    constants(&mut all);
    composites(&mut all);
    let mut add = |name: &str, m: ModelProto| all.push((name.to_string(), m));

    let mut flat = model(11, vec![node("Softmax", &["x"], &["y"], vec![])], vec![]);
    input_dims(&mut flat, &[D::P("n"), D::N(7)]);
    add("softmax_11_last", flat);
    let mut ones = model(12, vec![node("Softmax", &["x"], &["y"], vec![int("axis", -3)])], vec![]);
    input_dims(&mut ones, &[D::N(2), D::N(7), D::N(1), D::N(1)]);
    add("softmax_12_one_wide_axis", ones);
    add("softmax_13_default", model(13, vec![node("Softmax", &["x"], &["y"], vec![])], vec![]));

    let axes = || vec![i64s("axes", &[2], &[-1, 2])];
    add(
        "reduce_mean_18_axes_input",
        model(18, vec![node("ReduceMean", &["x", "axes"], &["y"], vec![])], axes()),
    );
    add(
        "reduce_mean_18_no_axes",
        model(18, vec![node("ReduceMean", &["x"], &["y"], vec![int("keepdims", 0)])], vec![]),
    );
    add(
        "reduce_mean_11",
        model(11, vec![node("ReduceMean", &["x"], &["y"], vec![ints("axes", &[2, 3])])], vec![]),
    );

    let bounds = vec![f32s("lo", &[], &[-0.25]), f32s("hi", &[], &[0.5])];
    add("clip_11", model(11, vec![node("Clip", &["x", "lo", "hi"], &["y"], vec![])], bounds.clone()));
    add(
        "clip_13_max_only",
        model(13, vec![node("Clip", &["x", "", "hi"], &["y"], vec![])], bounds[1..].to_vec()),
    );

    let dropout =
        vec![node("Dropout", &["x", "ratio"], &["d", "mask"], vec![]), node("Relu", &["d"], &["y"], vec![])];
    add("dropout_13_spare_mask", model(13, dropout, vec![f32s("ratio", &[], &[0.5])]));
    add("dropout_11", model(11, vec![node("Dropout", &["x"], &["y"], vec![float("ratio", 0.25)])], vec![]));

    let shape = || vec![i64s("shape", &[3], &[0, -1, 15])];
    add("reshape_13", model(13, vec![node("Reshape", &["x", "shape"], &["y"], vec![])], shape()));
    let nonzero = vec![i64s("shape", &[2], &[-1, 15])];
    add(
        "reshape_14_allowzero",
        model(14, vec![node("Reshape", &["x", "shape"], &["y"], vec![int("allowzero", 1)])], nonzero),
    );
    add("transpose_default", model(21, vec![node("Transpose", &["x"], &["y"], vec![])], vec![]));
    add("flatten_default", model(21, vec![node("Flatten", &["x"], &["y"], vec![])], vec![]));

    let vectors =
        || ["s", "b", "m", "v"].iter().map(|n| f32s(n, &[3], &[0.5, 1.5, 0.75])).collect::<Vec<_>>();
    let norm = |attrs| vec![node("BatchNormalization", &["x", "s", "b", "m", "v"], &["y"], attrs)];
    add("batch_norm_11", model(11, norm(vec![float("momentum", 0.8)]), vectors()));
    add("batch_norm_15", model(15, norm(vec![int("training_mode", 0), float("epsilon", 0.01)]), vectors()));

    // IR 3 listed every initialiser as an input too.
    let mut listed = model(11, vec![node("Mul", &["x", "k"], &["y"], vec![])], vec![f32s("k", &[1], &[3.0])]);
    listed.ir_version = 3;
    listed.graph.as_mut().unwrap().input.push(value("k", DataType::Float, &[D::N(1)]));
    add("initialiser_is_an_input", listed);
    let mut unnamed = model(17, vec![node("Relu", &["x"], &["y"], vec![])], vec![]);
    input_dims(&mut unnamed, &[D::Unknown, D::N(3), D::P("x.0"), D::P("")]);
    add("unnamed_dimensions", unnamed);
    all.extend(super::traps::models());
    all
}

fn output_type(mut m: ModelProto, dtype: DataType) -> ModelProto {
    m.graph.as_mut().unwrap().output[0] = output("y", dtype);
    m
}

fn input_dims(m: &mut ModelProto, dims: &[D]) {
    m.graph.as_mut().unwrap().input[0] = value("x", DataType::Float, dims);
}

/// Half-odd weights that are not symmetric, so that a shifted window shows.
fn weights(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i * 7 % 11) as f32 * 0.25 - 1.0).collect()
}

fn windows(all: &mut Vec<(String, ModelProto)>) {
    for pad in ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"] {
        let weight = || vec![f32s("w", &[4, 3, 3, 2], &weights(72))];
        let attrs = vec![string("auto_pad", pad), ints("strides", &[2, 1]), ints("kernel_shape", &[3, 2])];
        let conv = vec![node("Conv", &["x", "w"], &["y"], attrs)];
        all.push((format!("conv_{pad}"), model(11, conv, weight())));
        let attrs = vec![string("auto_pad", pad), ints("strides", &[2, 3]), ints("kernel_shape", &[3, 2])];
        for pool in ["MaxPool", "AveragePool"] {
            let pool_node = vec![node(pool, &["x"], &["y"], attrs.clone())];
            all.push((format!("{pool}_{pad}"), model(12, pool_node, vec![])));
        }
    }
    let attrs = vec![ints("kernel_shape", &[2, 2]), ints("dilations", &[2, 1]), int("storage_order", 0)];
    all.push(("max_pool_12".into(), model(12, vec![node("MaxPool", &["x"], &["y"], attrs)], vec![])));
    let attrs = vec![ints("kernel_shape", &[2, 2]), ints("dilations", &[2, 3])];
    all.push((
        "average_pool_19_dilated".into(),
        model(19, vec![node("AveragePool", &["x"], &["y"], attrs)], vec![]),
    ));
}

fn quantisation(all: &mut Vec<(String, ModelProto)>) {
    let scale = || f32s("s", &[], &[0.03]);
    let per_axis = || f32s("s", &[3], &[0.03, 0.01, 0.0625]);
    let mut add = |name: &str, m: ModelProto| all.push((name.to_string(), m));
    let quantize = |attrs| vec![node("QuantizeLinear", &["x", "s"], &["y"], attrs)];
    let (to_u8, to_i8) = (DataType::Uint8, DataType::Int8);
    add("quantize_11_no_zero_point", output_type(model(11, quantize(vec![]), vec![scale()]), to_u8));
    add(
        "quantize_13_no_zero_point_per_axis",
        output_type(model(13, quantize(vec![]), vec![per_axis()]), to_u8),
    );
    add(
        "quantize_21_output_dtype",
        output_type(model(21, quantize(vec![int("output_dtype", 3)]), vec![scale()]), to_i8),
    );
    let saturate =
        vec![node("QuantizeLinear", &["x", "s", "z"], &["y"], vec![int("saturate", 1), int("axis", -3)])];
    let zero = small("z", DataType::Int8, &[3], &[-1, 0, 127]);
    add("quantize_19_saturate", output_type(model(19, saturate, vec![per_axis(), zero]), to_i8));
    let weight = small("q", DataType::Int32, &[2, 3], &[-70000, 1, 2, 3, 4, 123456]);
    let nodes = vec![
        node("DequantizeLinear", &["q", "s"], &["d"], vec![]),
        node("Flatten", &["x"], &["f"], vec![int("axis", 0)]),
        node("ReduceMean", &["f"], &["m"], vec![]),
        node("Add", &["m", "d"], &["y"], vec![]),
    ];
    add("dequantize_13_i32_no_zero_point", model(13, nodes, vec![weight, per_axis()]));
}

fn constants(all: &mut Vec<(String, ModelProto)>) {
    let constant = |attr: AttributeProto| node("Constant", &[], &["c"], vec![attr]);
    let add = |attr| vec![constant(attr), node("Add", &["x", "c"], &["y"], vec![])];
    let t = raw("", DataType::Float as i32, &[1, 1], &2.5f32.to_le_bytes());
    all.push(("constant_tensor".into(), model(17, add(tensor("value", t)), vec![])));
    all.push(("constant_float".into(), model(13, add(float("value_float", 1.5)), vec![])));
    all.push((
        "constant_floats".into(),
        model(13, add(floats("value_floats", &[1.0, 2.0, 3.0, 4.0, 5.0])), vec![]),
    ));
    let reshape = vec![constant(ints("value_ints", &[6, 30])), node("Reshape", &["x", "c"], &["y"], vec![])];
    all.push(("constant_ints".into(), model(21, reshape, vec![])));
    let unused = vec![constant(int("value_int", 7)), node("Relu", &["x"], &["y"], vec![])];
    all.push(("constant_int_unused".into(), model(13, unused, vec![])));
    let u8s = small("z", DataType::Uint8, &[], &[200]);
    let quantize = vec![node("QuantizeLinear", &["x", "s", "z"], &["y"], vec![])];
    let held = model(13, quantize, vec![f32s("s", &[], &[0.1]), u8s]);
    all.push(("int32_data_holds_u8".into(), output_type(held, DataType::Uint8)));
}

/// Integer forms of onnxruntime's quantiser, and fused ops of its optimiser. `q` is x in u8.
fn composites(all: &mut Vec<(String, ModelProto)>) {
    let u8s = |name: &str, dims: &[i64], data: &[i32]| small(name, DataType::Uint8, dims, data);
    let i8s = |name: &str, dims: &[i64], data: &[i32]| small(name, DataType::Int8, dims, data);
    let spread = |n: i32| (0..n).map(|i| i * 37 % 247 - 120).collect::<Vec<i32>>();
    let constants = || {
        vec![
            f32s("xs", &[], &[0.017]),
            u8s("xz", &[], &[121]),
            f32s("ys", &[], &[0.031]),
            u8s("yz", &[], &[97]),
            f32s("ws", &[4], &[0.01, 0.002, 0.03, 0.0075]),
            i8s("wz", &[4], &[0; 4]),
            f32s("one", &[], &[0.004]),
            i8s("none", &[], &[0]),
            i8s("w", &[4, 3, 3, 2], &spread(72)),
            small("b", DataType::Int32, &[4], &[-900, 70, 0, 3000]),
            i8s("m", &[5, 4], &spread(20)),
            f32s("mf", &[5, 4], &weights(20)),
            f32s("wf", &[4, 3, 3, 2], &weights(72)),
            f32s("scale", &[5], &[1.0, 0.5, -2.0, 0.25, 3.0]),
            f32s("shift", &[5], &[0.5, 0.25, -1.0, 0.0, 2.0]),
        ]
    };
    let ms = |op: &str, inputs: &[&str], attrs| NodeProto {
        domain: "com.microsoft".into(),
        ..node(op, inputs, &["y"], attrs)
    };
    let mut add = |name: &str, dtype: DataType, mut nodes: Vec<NodeProto>| {
        if nodes.iter().any(|n| n.input.iter().any(|i| i == "q")) {
            nodes.insert(0, node("QuantizeLinear", &["x", "xs", "xz"], &["q"], vec![]));
        }
        let used = |t: &TensorProto| nodes.iter().any(|n| n.input.contains(&t.name));
        let constants = constants().into_iter().filter(used).collect();
        let mut m = model(17, nodes, constants);
        m.opset_import.push(OperatorSetIdProto { domain: "com.microsoft".into(), version: 1 });
        all.push((format!("composite_{name}"), output_type(m, dtype)));
    };
    let (byte, float32) = (DataType::Uint8, DataType::Float);
    let strided = || vec![ints("strides", &[2, 1]), ints("pads", &[1, 0, 1, 1])];
    let conv = ["q", "xs", "xz", "w", "ws", "wz", "ys", "yz"];
    add("qlinear_conv", byte, vec![node("QLinearConv", &conv, &["y"], strided())]);
    let with_bias = [&conv[..], &["b"]].concat();
    add("qlinear_conv_bias", byte, vec![node("QLinearConv", &with_bias, &["y"], strided())]);
    let product = ["q", "xs", "xz", "m", "ws", "wz", "ys", "yz"];
    add("qlinear_matmul", byte, vec![node("QLinearMatMul", &product, &["y"], vec![])]);
    let flat = || node("Reshape", &["x", "rows"], &["flat"], vec![]);
    let rows = || node("Constant", &[], &["rows"], vec![ints("value_ints", &[-1, 5])]);
    let quantised = || node("QuantizeLinear", &["flat", "xs", "xz"], &["fq"], vec![]);
    let gemm = ["fq", "xs", "xz", "m", "ws", "wz", "b", "ys", "yz"];
    add("qgemm", byte, vec![rows(), flat(), quantised(), ms("QGemm", &gemm, vec![float("alpha", 2.0)])]);
    add("qgemm_float", float32, vec![rows(), flat(), quantised(), ms("QGemm", &gemm[..7], vec![])]);
    let two = ["q", "xs", "xz", "q", "one", "yz", "ys", "yz"];
    add("qlinear_add", byte, vec![ms("QLinearAdd", &two, vec![])]);
    add("qlinear_mul", byte, vec![ms("QLinearMul", &two, vec![])]);
    let unary = ["q", "xs", "xz", "one", "yz"];
    add("qlinear_sigmoid", byte, vec![ms("QLinearSigmoid", &unary, vec![])]);
    let pool = vec![ints("kernel_shape", &[2, 2]), ints("strides", &[2, 1])];
    add("qlinear_average_pool", byte, vec![ms("QLinearAveragePool", &unary, pool)]);
    add("qlinear_global_average_pool", byte, vec![ms("QLinearGlobalAveragePool", &unary, vec![])]);
    let parts = ["ys", "yz", "q", "xs", "xz", "q", "one", "yz"];
    add("qlinear_concat", byte, vec![ms("QLinearConcat", &parts, vec![int("axis", 1)])]);
    let to_float = ["q", "m", "xs", "ws", "xz", "wz"];
    add("matmul_to_float", float32, vec![ms("MatMulIntegerToFloat", &to_float, vec![])]);

    let relu = [strided(), vec![string("activation", "Relu")]].concat();
    add("fused_conv", float32, vec![ms("FusedConv", &["x", "wf"], relu)]);
    let clip = vec![string("activation", "Clip"), floats("activation_params", &[-0.5, 1.0])];
    add("fused_conv_clip", float32, vec![ms("FusedConv", &["x", "wf"], [strided(), clip].concat())]);
    add("fused_matmul", float32, vec![ms("FusedMatMul", &["x", "mf"], vec![float("alpha", 0.125)])]);
    add("gelu", float32, vec![ms("Gelu", &["x"], vec![])]);
    add("bias_gelu", float32, vec![ms("BiasGelu", &["x", "shift"], vec![])]);
    add("fast_gelu", float32, vec![ms("FastGelu", &["x", "shift"], vec![])]);
    add("quick_gelu", float32, vec![ms("QuickGelu", &["x"], vec![float("alpha", 1.5)])]);
    let skip = ["r", "r", "scale", "shift", "shift"];
    let three = || node("Reshape", &["x", "sixes"], &["r"], vec![]);
    let sixes = || node("Constant", &[], &["sixes"], vec![ints("value_ints", &[6, 6, 5])]);
    let nodes = vec![sixes(), three(), ms("SkipLayerNormalization", &skip, vec![float("epsilon", 1e-3)])];
    add("skip_layer_norm", float32, nodes);
}
