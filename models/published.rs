//! Published weights into a network: the names that a file uses, and what of it fits.
//!
//! Parameter names are those of the project that a family's file names. Other projects call the same tensors otherwise;
//! each way is a row of [`NAMINGS`], and the row under which most of a network's tensors are found is the one that is
//! used.

use burn::module::Module;
use lacuna_nn::params::{self, ParamTable};
use lacuna_weights::WeightFile;
use regex::Regex;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// How one project names what ours names otherwise.
pub struct Naming {
    pub name: &'static str,
    /// Pattern and replacement; all are applied, in order. Blocks that they leave counted by stage (`_blocks.2.1`) are
    /// then counted through (`_blocks.4`), as there.
    pub renames: &'static [(&'static str, &'static str)],
}

const fn naming(name: &'static str, renames: &'static [(&'static str, &'static str)]) -> Naming {
    Naming { name, renames }
}

/// Wrappers that put a word before every name.
const WRAPPERS: (&str, &str) = (r"^(?:module\.|_orig_mod\.)+", "");

pub const NAMINGS: &[Naming] = &[
    naming("the network's own", &[WRAPPERS]),
    naming(
        "Hugging Face",
        &[
            WRAPPERS,
            (r"^(?:bert|roberta|distilbert)\.", ""),
            (r"LayerNorm\.gamma$", "LayerNorm.weight"),
            (r"LayerNorm\.beta$", "LayerNorm.bias"),
        ],
    ),
    // TensorFlow's object detection API, in a checkpoint and in what face-api.js made of one.
    naming(
        "TensorFlow's SSD",
        &[
            (r"^FeatureExtractor/MobilenetV1/", ""),
            (r"^MobilenetV1/Conv2d_0(?:_pointwise)?/", "backbone.0."),
            (r"^MobilenetV1/Conv2d_(\d+)_depthwise/", "backbone.$1.depth."),
            (r"^MobilenetV1/Conv2d_(\d+)_pointwise/", "backbone.$1.point."),
            (r"^Prediction/Conv2d_(\d+)_pointwise/", "extras.$1."),
            (r"^(?:Prediction/)?BoxPredictor_(\d+)/BoxEncodingPredictor/", "boxes.$1."),
            (r"^(?:Prediction/)?BoxPredictor_(\d+)/ClassPredictor/", "scores.$1."),
            (r"^((?:boxes|scores)\.\d+)\.weights$", "$1.weight"),
            (r"^((?:boxes|scores)\.\d+)\.biases$", "$1.bias"),
            (r"\.(?:depthwise_)?weights$", ".conv.weight"),
            (r"BatchNorm/gamma$", "bn.weight"),
            (r"BatchNorm/beta$", "bn.bias"),
            (r"BatchNorm/moving_mean$", "bn.running_mean"),
            (r"BatchNorm/moving_variance$", "bn.running_var"),
        ],
    ),
    // From timm to the names of efficientnet_pytorch. The first stage has no expansion.
    naming(
        "timm's EfficientNet-Lite",
        &[
            WRAPPERS,
            (r"^conv_stem\.", "_conv_stem."),
            (r"^bn1\.", "_bn0."),
            (r"^conv_head\.", "_conv_head."),
            (r"^bn2\.", "_bn1."),
            (r"^classifier\.", "_fc."),
            (r"^blocks\.0\.(\d+)\.bn1\.", "block.0.$1._bn1."),
            (r"^blocks\.0\.(\d+)\.bn2\.", "block.0.$1._bn2."),
            (r"^blocks\.0\.(\d+)\.conv_pw\.", "block.0.$1._project_conv."),
            (r"^blocks\.", "block."),
            (r"\.conv_dw\.", "._depthwise_conv."),
            (r"\.conv_pw\.", "._expand_conv."),
            (r"\.conv_pwl\.", "._project_conv."),
            (r"\.se\.conv_", "._se_"),
            (r"\.bn1\.", "._bn0."),
            (r"\.bn2\.", "._bn1."),
            (r"\.bn3\.", "._bn2."),
            (r"^block\.", "_blocks."),
        ],
    ),
    // From timm to torchvision. The first stage has no expansion.
    naming(
        "timm's EfficientNet",
        &[
            WRAPPERS,
            (r"^conv_stem\.", "features.0.0."),
            (r"^bn1\.", "features.0.1."),
            (r"^conv_head\.", "features.8.0."),
            (r"^bn2\.", "features.8.1."),
            (r"^classifier\.", "classifier.1."),
            (r"^blocks\.0\.(\d+)\.conv_dw\.", "features.1.$1.block.0.0."),
            (r"^blocks\.0\.(\d+)\.bn1\.", "features.1.$1.block.0.1."),
            (r"^blocks\.0\.(\d+)\.se\.conv_reduce\.", "features.1.$1.block.1.fc1."),
            (r"^blocks\.0\.(\d+)\.se\.conv_expand\.", "features.1.$1.block.1.fc2."),
            (r"^blocks\.0\.(\d+)\.conv_pw\.", "features.1.$1.block.2.0."),
            (r"^blocks\.0\.(\d+)\.bn2\.", "features.1.$1.block.2.1."),
            (r"^blocks\.1\.(\d+)\.", "features.2.$1.block."),
            (r"^blocks\.2\.(\d+)\.", "features.3.$1.block."),
            (r"^blocks\.3\.(\d+)\.", "features.4.$1.block."),
            (r"^blocks\.4\.(\d+)\.", "features.5.$1.block."),
            (r"^blocks\.5\.(\d+)\.", "features.6.$1.block."),
            (r"^blocks\.6\.(\d+)\.", "features.7.$1.block."),
            (r"\.conv_pw\.", ".0.0."),
            (r"\.bn1\.", ".0.1."),
            (r"\.conv_dw\.", ".1.0."),
            (r"\.bn2\.", ".1.1."),
            (r"\.se\.conv_reduce\.", ".2.fc1."),
            (r"\.se\.conv_expand\.", ".2.fc2."),
            (r"\.conv_pwl\.", ".3.0."),
            (r"\.bn3\.", ".3.1."),
        ],
    ),
];

/// Tensors of published files that no network reads: counters, and numbers from 0.
const IDLE: [&str; 3] = ["num_batches_tracked", "position_ids", "dfl.conv.weight"];
/// Tensors that published files never have: what observers saw, how layers are quantised, whether they run, and what their ReLUs
/// cut off.
const OBSERVED: [&str; 5] = [".range", ".step", ".scheme", ".removed", ".threshold"];

/// A tensor that has another shape in the file than in the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misshaped {
    pub name: String,
    pub file: Vec<usize>,
    pub network: Vec<usize>,
}

/// What of a file fits a network. Names are the network's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The row of [`NAMINGS`].
    pub naming: &'static str,
    pub loaded: usize,
    pub missing: Vec<String>,
    pub misshaped: Vec<Misshaped>,
    /// Tensors of the file, under its own names.
    pub unused: Vec<String>,
}

/// Whether a tensor's name begins with one of the words of `head`, between which `|` stands.
pub fn is_head(head: &str, name: &str) -> bool {
    head.split('|').any(|head| !head.is_empty() && name.starts_with(head))
}

impl Report {
    /// Whether every tensor of the network was loaded, but for those of `head`, as [`is_head`] tells them.
    pub fn complete_but(&self, head: Option<&str>) -> bool {
        let spared = |name: &String| head.is_some_and(|head| is_head(head, name));
        self.missing.iter().all(spared) && self.misshaped.iter().all(|t| spared(&t.name))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tensors loaded under {} names", self.loaded, self.naming)?;
        list(f, "missing", &self.missing)?;
        let other = |t: &Misshaped| format!("'{}' {:?}, not {:?}", t.name, t.file, t.network);
        list(f, "of another shape", &self.misshaped.iter().map(other).collect::<Vec<_>>())?;
        list(f, "unused", &self.unused)
    }
}

/// A count and the first few names.
fn list(f: &mut fmt::Formatter<'_>, what: &str, names: &[String]) -> fmt::Result {
    const SHOWN: usize = 5;
    if names.is_empty() {
        return Ok(());
    }
    let shown = names.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    let more = if names.len() > SHOWN { ", ..." } else { "" };
    write!(f, "; {} {what}: {shown}{more}", names.len())
}

/// Puts what fits of a file into a network; everything else of it stays as it was.
pub fn load<M: Module>(module: M, file: &WeightFile) -> (M, Report) {
    let table = ParamTable::of(&module);
    let rows: HashMap<&str, usize> = table.name.iter().enumerate().map(|(i, n)| (n.as_str(), i)).collect();
    let names: Vec<&str> = file.tensors.iter().map(|t| t.name.as_str()).collect();
    let found = |named: &[String]| named.iter().filter(|name| rows.contains_key(name.as_str())).count();
    let mut best = (0, &NAMINGS[0], Vec::new());
    for naming in NAMINGS {
        let named = naming.apply(&names);
        let count = found(&named);
        if count > best.0 || best.2.is_empty() {
            best = (count, naming, named);
        }
    }
    let (_, naming, named) = best;

    let mut report = Report { naming: naming.name, ..Report::default() };
    // Tensor of the file for each row of the network.
    let mut source = vec![None; table.len()];
    for (i, name) in named.iter().enumerate() {
        match rows.get(name.as_str()) {
            Some(&row) if source[row].is_none() => source[row] = Some(i),
            _ if IDLE.iter().any(|idle| name.ends_with(idle)) => {}
            _ => report.unused.push(names[i].to_owned()),
        }
    }
    for row in 0..table.len() {
        let name = &table.name[row];
        match source[row].map(|i| &file.tensors[i]) {
            None if OBSERVED.iter().any(|end| name.ends_with(end)) => {}
            None => report.missing.push(name.clone()),
            Some(t) if t.dims != table.shape[row] => {
                report.misshaped.push(Misshaped {
                    name: name.clone(),
                    file: t.dims.clone(),
                    network: table.shape[row].clone(),
                });
                source[row] = None;
            }
            Some(_) => report.loaded += 1,
        }
    }
    let module = params::update_each(module, |row, values| {
        if let Some(i) = source[row] {
            *values = file.values(i);
        }
    });
    (module, report)
}

impl Naming {
    /// The names that these tensors have here.
    pub fn apply(&self, names: &[&str]) -> Vec<String> {
        let renames: Vec<(Regex, &str)> = self
            .renames
            .iter()
            .map(|(pattern, to)| (Regex::new(pattern).expect("a pattern of the table"), *to))
            .collect();
        let rename = |name: &&str| {
            renames
                .iter()
                .fold((*name).to_owned(), |name, (pattern, to)| pattern.replace(&name, *to).into_owned())
        };
        let mut renamed: Vec<String> = names.iter().map(rename).collect();
        count_through(&mut renamed);
        renamed
    }
}

/// `_blocks.STAGE.BLOCK.` to `_blocks.N.`, in order of stage and block.
fn count_through(names: &mut [String]) {
    let staged = Regex::new(r"^_blocks\.(\d{1,4})\.(\d{1,4})\.").expect("a pattern");
    let place = |name: &str| -> Option<(u32, u32)> {
        let found = staged.captures(name)?;
        Some((found[1].parse().ok()?, found[2].parse().ok()?))
    };
    let mut number: BTreeMap<(u32, u32), usize> = names.iter().filter_map(|n| Some((place(n)?, 0))).collect();
    number.values_mut().enumerate().for_each(|(i, n)| *n = i);
    for name in names {
        if let Some(at) = place(name) {
            *name = staged.replace(name, format!("_blocks.{}.", number[&at])).into_owned();
        }
    }
}
