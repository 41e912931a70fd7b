//! What users give as MODEL: a run folder, a file of weights (of a run, or published), an ONNX file or a .lacuna file; and
//! how it becomes a graph.

use crate::error::{Failure, Result};
use crate::training;
use lacuna_data::images::IMAGE_SIDE_MAX;
use lacuna_ir::{Attr, DType, Graph, OpKind, ValueId, passes};
use lacuna_models::published::{self, Report};
use lacuna_models::ssd::Ssd;
use lacuna_models::{InputShape, ModelRow, Network};
use lacuna_nn::capture;
use lacuna_nn::params::ParamTable;
use lacuna_nn::quant::{Norm, Pass, Quant};
use lacuna_pipelines::heads::Head;
use lacuna_pipelines::letterbox::{Frame, Placement};
use lacuna_pipelines::priors;
use lacuna_train::checkpoint::{NamedTensor, read_safetensors_metadata};
use lacuna_train::detection;
use lacuna_train::run_folder::RunFolder;
use lacuna_train::trainer::quant_from_name;
use lacuna_train::weights::{self, Metadata};
use lacuna_weights::WeightFile;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Most classes of a run: more than any data set has that is read.
const CLASSES_MAX: usize = 1 << 16;

/// Which weights of a run folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum WeightsName {
    /// The most accurate since the last structural change.
    #[default]
    Best,
    /// The last epoch's.
    Last,
    /// As they were before quantisation began.
    Pruned,
}

impl WeightsName {
    pub fn name(self) -> &'static str {
        match self {
            WeightsName::Best => "best",
            WeightsName::Last => "last",
            WeightsName::Pruned => "pruned",
        }
    }
}

/// A network with its weights.
pub struct Trained {
    pub path: PathBuf,
    pub row: &'static ModelRow,
    /// Channels, height and width of the images that the weights are for: detectors may be trained on another size than the
    /// model's.
    pub image: Option<[usize; 3]>,
    pub net: Network,
    pub pass: Pass,
    pub metadata: Metadata,
}

pub enum Model {
    Trained(Box<Trained>),
    /// ONNX or .lacuna.
    File {
        path: PathBuf,
        graph: Box<Graph>,
    },
}

/// The file that `zoo:MODEL` or `hf:OWNER/NAME` stands for; other paths as they are.
pub fn find(path: &Path) -> Result<PathBuf> {
    let place = match zoo_model(path) {
        None => path.to_owned(),
        Some(name) => {
            let place = training::model(name)?.place().ok_or_else(|| {
                let what = "no place of published weights is known (`lacuna zoo list` shows those that are)";
                Failure::usage(format!("zoo:{name}: {what}"))
            })?;
            PathBuf::from(format!("hf:{place}"))
        }
    };
    Ok(lacuna_weights::hub::find(&place, &|address| crate::term::note("download", address))?)
}

/// The model of a path that is `zoo:MODEL`.
fn zoo_model(path: &Path) -> Option<&str> {
    path.to_str()?.strip_prefix("zoo:")
}

/// Opens a MODEL. `model` names the architecture where neither the file nor `zoo:` does.
pub fn open(path: &Path, name: WeightsName, model: Option<&str>) -> Result<Model> {
    let model = model.or(zoo_model(path));
    let path = &find(path)?;
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    match extension.as_str() {
        _ if path.is_dir() => open_run(path, name, model),
        _ if !path.exists() => Err(Failure::input(format!("{}: there is no such file", path.display()))),
        "safetensors" | "pth" | "pt" | "bin" | "json" => {
            Ok(Model::Trained(Box::new(open_weights(path, model)?)))
        }
        "onnx" => Ok(Model::File { path: path.to_owned(), graph: Box::new(lacuna_onnx::load(path)?) }),
        _ if is_container(path) => {
            Ok(Model::File { path: path.to_owned(), graph: Box::new(lacuna_container::load(path)?) })
        }
        _ => Err(Failure::usage(format!(
            "{}: not a model (give a run folder, or a .safetensors, .pth, .json, .onnx or .lacuna file)",
            path.display()
        ))),
    }
}

/// Whether a path is called as a .lacuna file is.
pub fn is_container(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("lacuna"))
}

fn open_run(path: &Path, name: WeightsName, model: Option<&str>) -> Result<Model> {
    let folder = RunFolder::open(path)?;
    let weights = folder.weights(name.name());
    if !weights.is_file() {
        let help = match name {
            WeightsName::Pruned => "they are written when a recipe begins to quantise",
            _ => "they are written at the end of every epoch; go on with `lacuna train --resume`",
        };
        return Err(Failure::input(format!("{}: no such weights ({help})", weights.display())));
    }
    Ok(Model::Trained(Box::new(open_weights(&weights, model)?)))
}

/// Reads weights into the network that their metadata, or `model`, names.
pub fn open_weights(path: &Path, model: Option<&str>) -> Result<Trained> {
    if is_published(path)? {
        return open_published(path, model);
    }
    let (tensors, metadata) = read_safetensors_metadata(path)?;
    let row = named_model(path, model.or(metadata.get("lacuna.model").map(String::as_str)))?;
    let at = |failure: Failure| failure.at(path.display());
    let net = row.empty(classes(&metadata).map_err(at)?.unwrap_or(row.classes));
    let image = trained_image(row, &metadata).map_err(at)?;
    let net = weights::put_described(net, &tensors, &metadata)
        .map_err(|why| Failure::input(why).at(path.display()))?;
    let quant = match metadata.get("lacuna.quant") {
        None => Quant::Off,
        Some(text) => quant_from_name(text).ok_or_else(|| {
            Failure::input(format!("{}: lacuna.quant is '{text}' (use a newer lacuna)", path.display()))
        })?,
    };
    // An evaluation neither moves ranges nor takes batch statistics.
    let quant = if quant == Quant::Off { Quant::Off } else { Quant::Frozen };
    Ok(Trained {
        path: path.to_owned(),
        row,
        image,
        net,
        pass: Pass { quant, norm: Norm::Frozen, ..Pass::default() },
        metadata,
    })
}

fn named_model(path: &Path, name: Option<&str>) -> Result<&'static ModelRow> {
    let Some(name) = name else {
        let what = "says not which model it is for (give --model)";
        return Err(Failure::input(format!("{}: {what}", path.display())));
    };
    training::model(name)
}

/// Whether a file of weights was made by others. Our own say the model they are for.
fn is_published(path: &Path) -> Result<bool> {
    if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("safetensors")) {
        return Ok(true);
    }
    Ok(!lacuna_weights::safetensors_metadata(path)?.contains_key("lacuna.model"))
}

fn open_published(path: &Path, model: Option<&str>) -> Result<Trained> {
    let row = named_model(path, model)?;
    let (net, report) = put_published(row.empty(row.classes), path, None)?;
    let mut metadata = Metadata::from([
        ("lacuna.model".to_owned(), row.name.to_owned()),
        ("lacuna.task".to_owned(), row.task.name().to_owned()),
        ("lacuna.weights".to_owned(), format!("{}: {report}", file_name(path))),
        ("lacuna.version".to_owned(), training::VERSION.to_owned()),
    ]);
    if let Some(pixels) = row.pixels {
        metadata.insert("lacuna.mean".to_owned(), training::shortest(&pixels.mean).to_string());
        metadata.insert("lacuna.std".to_owned(), training::shortest(&pixels.std).to_string());
    }
    let pass = Pass { norm: Norm::Frozen, ..Pass::default() };
    let image = trained_image(row, &metadata)?;
    Ok(Trained { path: path.to_owned(), row, image, net, pass, metadata })
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// As many classes as the metadata of a run names.
fn classes(metadata: &Metadata) -> Result<Option<usize>> {
    let Some(text) = metadata.get("lacuna.classes") else { return Ok(None) };
    let names: Vec<String> = serde_json::from_str(text).map_err(|e| unread("classes", e))?;
    match names.len() {
        n @ 1..=CLASSES_MAX => Ok(Some(n)),
        n => Err(unread("classes", format_args!("{n} names (1 to {CLASSES_MAX})"))),
    }
}

fn unread(key: &str, why: impl std::fmt::Display) -> Failure {
    Failure::input(format!("metadata lacuna.{key}: {why}"))
}

/// Weights to start a training from, of a run or published. The layer that tells classes apart stays new where
/// `reset_head` asks for it, and where the file has one for another number of classes.
pub fn initial_weights(row: &ModelRow, net: Network, path: &Path, reset_head: bool) -> Result<Network> {
    let (table, fresh) = (ParamTable::of(&net), net.clone());
    let is_head = |name: &str| row.is_head(name);
    let old_head = |file: &[NamedTensor]| -> Vec<NamedTensor> {
        let of_file = file.iter().filter(|t| !is_head(&t.name)).cloned();
        let own = weights::tensors(&fresh, &table).into_iter().filter(|t| is_head(&t.name));
        of_file.chain(own).collect()
    };
    if is_published(path)? {
        let net = put_published(net, path, Some(row.head))?.0;
        if !reset_head {
            return Ok(net);
        }
        let tensors = old_head(&weights::tensors(&net, &table));
        return weights::put(net, &tensors).map_err(|why| Failure::input(why).at(path.display()));
    }
    let (mut tensors, _) = read_safetensors_metadata(path)?;
    let shape_of = |name: &str| table.row(name).map(|i| &table.shape[i]);
    let other = tensors.iter().find(|t| is_head(&t.name) && shape_of(&t.name) != Some(&t.dims));
    if let Some(other) = other.filter(|_| !reset_head) {
        let (name, dims) = (&other.name, &other.dims);
        crate::term::note(
            "weights",
            format_args!("{}: '{name}' {dims:?} is of other classes: that layer starts anew", path.display()),
        );
    }
    if reset_head || other.is_some() {
        tensors = old_head(&tensors);
    }
    weights::put(net, &tensors).map_err(|why| Failure::input(why).at(path.display()))
}

/// Puts published weights into a network and says what did not fit. Only tensors whose names begin with `head` may.
fn put_published(net: Network, path: &Path, head: Option<&str>) -> Result<(Network, Report)> {
    let (net, report) = published::load(net, &WeightFile::open(path)?);
    if !report.complete_but(head) {
        return Err(Failure::input(format!(
            "{}: {report} (is it for this model? see `lacuna zoo list`)",
            path.display()
        )));
    }
    if !(report.unused.is_empty() && report.complete_but(None)) {
        crate::term::note("weights", format_args!("{}: {report}", path.display()));
    }
    Ok((net, report))
}

/// The network as a graph: captured, batch norm folded, with its metadata. The batch stays symbolic, and so does the length
/// of sequences.
pub fn graph_of(trained: &Trained) -> Result<Graph> {
    let Trained { row, net, pass, metadata, .. } = trained;
    let names = lacuna_models::output_names(net);
    let (mut graph, head) = match row.input {
        InputShape::Image(shape) => {
            let [c, h, w] = trained.image.unwrap_or(shape);
            let graph = capture::capture(net, "input", [1, c, h, w], &names, |m, x| m.outputs(x, pass))?;
            (graph, head_of(net, [h, w]))
        }
        InputShape::Tokens { .. } => {
            let types = net.has_token_types();
            (capture::capture_tokens(net, types, &names, |m, x| m.outputs(x, pass))?, None)
        }
    };
    passes::simplify(&mut graph)?;
    let mut graph = graph.compact();
    graph.name = row.name.to_owned();
    graph.metadata = metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    if let Some((head, frame)) = head {
        graph.metadata.push(("lacuna.head".to_owned(), json!(head).to_string()));
        graph.metadata.push(("lacuna.frame".to_owned(), json!(frame).to_string()));
    }
    Ok(graph)
}

/// See [`Trained::image`].
fn trained_image(row: &ModelRow, metadata: &Metadata) -> Result<Option<[usize; 3]>> {
    let InputShape::Image([c, h, w]) = row.input else { return Ok(None) };
    let Some(text) = metadata.get("lacuna.image") else { return Ok(Some([c, h, w])) };
    let [h, w] = serde_json::from_str::<[usize; 2]>(text).map_err(|e| unread("image", e))?;
    let most = IMAGE_SIDE_MAX as usize;
    match [h, w].iter().all(|side| (1..=most).contains(side)) {
        true => Ok(Some([c, h, w])),
        false => Err(unread("image", format_args!("{h}x{w} pixels (1 to {most})"))),
    }
}

/// How the results of a detector are to be read, and how pictures are put into its input of `size` (height, width).
fn head_of(net: &Network, size: [usize; 2]) -> Option<(Head, Frame)> {
    let stretched = Frame { placement: Placement::Stretch, fill: 0 };
    let padded = Frame { placement: Placement::TopLeft, fill: 0 };
    Some(match net {
        Network::Yolo(net) => (detection::head_of(&net.head()), Placement::Centre.into()),
        Network::Ssd(Ssd::ResNet(_)) => (Head::Priors(priors::ssd300()), stretched),
        Network::Ssd(Ssd::Lite(_)) => (Head::Priors(priors::ssdlite(size)), stretched),
        Network::Ssd(Ssd::MobileNet(net)) => {
            (Head::Priors(priors::ssd_mobilenet(size)), if net.padded { padded } else { stretched })
        }
        Network::Yolact(_) => (Head::Priors(priors::yolact(size)), stretched),
        _ => return None,
    })
}

impl Model {
    pub fn path(&self) -> &Path {
        match self {
            Model::Trained(trained) => &trained.path,
            Model::File { path, .. } => path,
        }
    }

    /// Channels, height and width of the images it takes, where they are fixed.
    pub fn image_shape(&self) -> Option<[usize; 3]> {
        match self {
            Model::Trained(trained) => trained.image,
            Model::File { graph, .. } => {
                let dims = graph.shape(*graph.inputs.first()?).get(1..)?;
                let fixed: Option<Vec<usize>> = dims.iter().map(|d| d.fixed()?.try_into().ok()).collect();
                fixed?.try_into().ok()
            }
        }
    }

    /// Whether it finds boxes, as far as the file says.
    pub fn detects(&self) -> bool {
        match self {
            Model::Trained(trained) => trained.row.task.finds_boxes(),
            Model::File { graph, .. } => graph.metadata("lacuna.head").is_some(),
        }
    }

    /// Most tokens of a sequence, where its row says so.
    pub fn most_tokens(&self) -> Option<usize> {
        match self {
            Model::Trained(trained) => match trained.row.input {
                InputShape::Tokens { length, .. } => Some(length),
                InputShape::Image(_) => None,
            },
            Model::File { .. } => None,
        }
    }

    /// Whether it takes tokens: its own row says so, or a file's inputs do.
    pub fn takes_tokens(&self) -> bool {
        match self {
            Model::Trained(trained) => matches!(trained.row.input, InputShape::Tokens { .. }),
            Model::File { graph, .. } => {
                let ids = |&v: &ValueId| graph.value_name[v].contains("input_ids");
                graph.inputs.iter().any(ids)
            }
        }
    }

    pub fn into_graph(self) -> Result<Graph> {
        match self {
            Model::Trained(trained) => graph_of(&trained),
            Model::File { graph, .. } => Ok(*graph),
        }
    }
}

/// The weight of one op.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct WeightRow {
    pub op: String,
    pub tensor: String,
    pub dtype: &'static str,
    pub elements: u64,
    pub zeros: u64,
}

/// Every constant weight of a convolution or matrix product, and how many of its elements stand for zero.
pub fn weight_rows(g: &Graph) -> Vec<WeightRow> {
    let weighted = |op| matches!(g.op_kind[op], OpKind::Conv | OpKind::Gemm | OpKind::MatMul);
    let row = |op| {
        let (value, zeros) = zeros_of(g, g.input_of(op, 1)?)?;
        let dtype = g.value_dtype[value];
        let elements = (g.const_bytes(value)?.len() / dtype.size()) as u64;
        let tensor = g.value_name[value].clone();
        Some(WeightRow { op: g.op_name[op].clone(), tensor, dtype: dtype.name(), elements, zeros })
    };
    g.order.iter().copied().filter(|&op| weighted(op)).filter_map(row).collect()
}

/// The constant behind a weight, through a dequantisation and a transposition, and its number of zeros.
fn zeros_of(g: &Graph, mut v: ValueId) -> Option<(ValueId, u64)> {
    let mut zero_point = None;
    while let Some(op) = g.producer(v) {
        match (g.op_kind[op], &g.op_attr[op]) {
            (OpKind::DequantizeLinear, _) => zero_point = g.input_of(op, 2),
            (OpKind::Transpose, Attr::Perm(_)) => {}
            _ => return None,
        }
        v = g.input_of(op, 0)?;
    }
    let count = match g.value_dtype[v] {
        DType::F32 => g.const_f32(v)?.iter().filter(|&&w| w == 0.0).count(),
        DType::I8 | DType::U8 => {
            let bytes = g.const_bytes(v)?;
            let points: &[u8] = zero_point.and_then(|z| g.const_bytes(z)).map_or(&[0], |b| b);
            let first = *points.first()?;
            // Zero points that differ by channel are rare in weights, and have no one zero to count.
            if points.iter().any(|&p| p != first) {
                return None;
            }
            bytes.iter().filter(|&&w| w == first).count()
        }
        _ => return None,
    };
    Some((v, count as u64))
}
