//! `lacuna predict embed` and `classify-text`, and `lacuna eval` on texts.

use crate::classify::Evaluation;
use crate::error::{Exit, Failure, Result};
use crate::eval::{self, Eval};
use crate::model_file::{self, Model, WeightsName};
use crate::predict::class_names;
use crate::term;
use lacuna_data::texts::{self, find_pair, numbers_of};
use lacuna_ir::Graph;
use lacuna_pipelines::text::{similarity, text_set};
use lacuna_pipelines::tokenizer::TEXT_BYTES_MAX;
use lacuna_pipelines::{Embedder, TextClassifier, Tokenizer};
use serde_json::json;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Texts of which a table shows how alike each two are.
const TABLE_TEXTS_MAX: usize = 12;
/// Letters of a text that a table shows.
const SHOWN_LETTERS: usize = 60;
/// Texts in one go.
const TEXTS_MAX: usize = 100_000;

// What both tasks take. (Not a doc comment: clap would take it for what the verb does.)
#[derive(clap::Args, Debug)]
struct Source {
    /// Run folder, file of weights, or .onnx or .lacuna file
    #[arg(value_name = "MODEL")]
    path: PathBuf,
    /// Texts
    #[arg(value_name = "TEXT", required_unless_present = "file")]
    texts: Vec<String>,
    /// File with a text in each line (- for what is piped in)
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Which weights of a run folder
    #[arg(long, value_enum, default_value_t = WeightsName::Best)]
    name: WeightsName,
    /// Model that the weights are for, where the file does not name it (see lacuna zoo list)
    #[arg(long)]
    model: Option<String>,
    /// Vocabulary: tokenizer.json or vocab.txt [default: that beside the model]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
    /// Most tokens of a text; what is behind them is cut off [default: as the model or the vocabulary says, or 128]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(3..=1 << 16))]
    tokens: Option<u32>,
    /// Threads; all cores if not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args, Debug)]
pub struct Embed {
    #[command(flatten)]
    source: Source,
}

#[derive(clap::Args, Debug)]
pub struct ClassifyText {
    #[command(flatten)]
    source: Source,
    /// Classes to show for each text
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
}

/// A model of texts that is ready, and what it is given.
struct Opened {
    path: PathBuf,
    graph: Graph,
    tokenizer: Tokenizer,
    most: usize,
    threads: Option<usize>,
    texts: Vec<String>,
}

impl Source {
    fn open(self) -> Result<Opened> {
        let texts = self.texts()?;
        let model = model_file::open(&self.path, self.name, self.model.as_deref())?;
        let (graph, tokenizer, most, path) = opened(model, self.tokenizer.as_deref(), self.tokens)?;
        let threads = self.threads.map(|n| n as usize);
        Ok(Opened { path, graph, tokenizer, most, threads, texts })
    }

    fn texts(&self) -> Result<Vec<String>> {
        let mut texts = self.texts.clone();
        if let Some(file) = &self.file {
            let mut text = String::new();
            let mut read = |from: &mut dyn Read| {
                // More than so many bytes are more than so many texts, or too long ones.
                from.take(texts::FILE_BYTES_MAX).read_to_string(&mut text)
            };
            let done = match file.as_os_str() == "-" {
                true => read(&mut std::io::stdin().lock()),
                false => std::fs::File::open(file).and_then(|mut file| read(&mut file)),
            };
            done.map_err(|e| Failure::new(Exit::Data, format!("{}: {e}", file.display())))?;
            texts.extend(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned));
        }
        let wrong = |why: String| Failure::new(Exit::Data, format!("predict: {why}"));
        match texts.iter().find(|text| text.len() > TEXT_BYTES_MAX) {
            Some(text) => Err(wrong(format!("a text has {} bytes, at most {TEXT_BYTES_MAX}", text.len()))),
            None if texts.is_empty() => Err(wrong("there are no texts".into())),
            None if texts.len() > TEXTS_MAX => {
                Err(wrong(format!("{} texts, at most {TEXTS_MAX} in one go", texts.len())))
            }
            None => Ok(texts),
        }
    }
}

/// The graph of a model, its vocabulary, and how many tokens of a text it reads.
fn opened(
    model: Model,
    tokenizer: Option<&Path>,
    tokens: Option<u32>,
) -> Result<(Graph, Tokenizer, usize, PathBuf)> {
    let path = model.path().to_owned();
    let tokenizer = match tokenizer {
        Some(file) => Tokenizer::open(file)?,
        None => Tokenizer::beside(&path)?,
    };
    let length = model.most_tokens();
    let mut graph = model.into_graph()?;
    graph.name = path.display().to_string();
    let said = graph.metadata("lacuna.tokens").and_then(|n| n.parse().ok());
    let usual = said.unwrap_or(tokenizer.usual);
    let most = tokens.map_or(usual, |n| n as usize).min(length.unwrap_or(usize::MAX)).max(3);
    if let Some(words) = words_of(&graph).filter(|&words| words < tokenizer.words()) {
        let file = tokenizer.path.display();
        return Err(Failure::input(format!(
            "{file}: {} tokens, and {} knows {words} (give the vocabulary it was trained with: --tokenizer)",
            tokenizer.words(),
            path.display()
        )));
    }
    Ok((graph, tokenizer, most, path))
}

/// Rows of the table that is looked up by ids, where it can be seen.
fn words_of(g: &Graph) -> Option<usize> {
    let ids = g.inputs.iter().copied().find(|&v| g.value_name[v].contains("input_ids"))?;
    let looks_up =
        |op: &lacuna_ir::OpId| g.op_kind[*op] == lacuna_ir::OpKind::Gather && g.input_of(*op, 1) == Some(ids);
    let op = g.order.iter().copied().find(looks_up)?;
    g.shape(g.input_of(op, 0)?).first()?.fixed()?.try_into().ok()
}

pub fn embed(options: Embed) -> Result<()> {
    let as_json = options.source.json;
    let Opened { path, graph, tokenizer, most, threads, texts } = options.source.open()?;
    let mut embedder = Embedder::new(&graph, tokenizer, Some(most), threads)?;
    drop(graph);
    let vectors = embedder.embed(&texts)?;
    if as_json {
        let row = |(text, vector): (&String, &Vec<f32>)| json!({ "text": text, "embedding": vector });
        term::say_json(&json!({
            "model": path.display().to_string(),
            "results": texts.iter().zip(&vectors).map(row).collect::<Vec<_>>(),
        }));
        return Ok(());
    }
    term::say(similarities(&texts, &vectors));
    Ok(())
}

/// How alike each two of a few texts are; of many, which is nearest to each.
fn similarities(texts: &[String], vectors: &[Vec<f32>]) -> String {
    let cosine = |a: usize, b: usize| format!("{:.3}", similarity(&vectors[a], &vectors[b]));
    let number = |i: usize| (i + 1).to_string();
    if texts.len() <= TABLE_TEXTS_MAX {
        let columns: Vec<String> = (0..texts.len()).map(|i| format!(">{}", number(i))).collect();
        let heads: Vec<&str> = ["", "text"].into_iter().chain(columns.iter().map(String::as_str)).collect();
        let row = |a: usize| -> Vec<String> {
            let cells = (0..texts.len()).map(|b| cosine(a, b));
            [number(a), shown(&texts[a])].into_iter().chain(cells).collect()
        };
        return term::table(&heads, &(0..texts.len()).map(row).collect::<Vec<_>>());
    }
    let nearest = |a: usize| {
        let others = (0..texts.len()).filter(|&b| b != a);
        others.max_by(|&b, &c| {
            similarity(&vectors[a], &vectors[b]).total_cmp(&similarity(&vectors[a], &vectors[c]))
        })
    };
    let row = |a: usize| {
        let b = nearest(a).unwrap_or(a);
        vec![number(a), shown(&texts[a]), cosine(a, b), shown(&texts[b])]
    };
    term::table(&["", "text", ">cosine", "nearest"], &(0..texts.len()).map(row).collect::<Vec<_>>())
}

/// The beginning of a text, in one line.
fn shown(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let mut begin: String = text.chars().take(SHOWN_LETTERS).map(plain).collect();
    if text.chars().nth(SHOWN_LETTERS).is_some() {
        begin.push_str("...");
    }
    begin
}

pub fn classify(options: ClassifyText) -> Result<()> {
    let (as_json, top) = (options.source.json, options.top as usize);
    let Opened { path, graph, tokenizer, most, threads, texts } = options.source.open()?;
    let mut classifier = TextClassifier::new(&graph, tokenizer.filler, threads)?;
    let sequences = tokenizer.encode_all(&texts, most)?;
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    let rows = classifier.probabilities(&sequences)?;
    let classes = class_names(&graph, &path, rows.first().map_or(0, Vec::len))?;
    let ranking = |row: &Vec<f32>| {
        let mut order: Vec<usize> = (0..row.len()).collect();
        // Stable: of equal ones the lower class comes first, as in top-1.
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        order.truncate(top);
        order
    };
    if as_json {
        let result = |(text, row): (&String, &Vec<f32>)| {
            let class = |i: usize| json!({ "class": i, "label": classes[i], "score": row[i] });
            json!({ "text": text, "classes": ranking(row).into_iter().map(class).collect::<Vec<_>>() })
        };
        term::say_json(&json!({
            "model": path.display().to_string(),
            "results": texts.iter().zip(&rows).map(result).collect::<Vec<_>>(),
        }));
        return Ok(());
    }
    let mut lines = Vec::new();
    for (text, row) in texts.iter().zip(&rows) {
        for (place, class) in ranking(row).into_iter().enumerate() {
            let text = if place == 0 { shown(text) } else { String::new() };
            lines.push(vec![text, classes[class].clone(), format!("{:.2} %", row[class] * 100.0)]);
        }
    }
    term::say(term::table(&["text", "class", ">probability"], &lines));
    Ok(())
}

/// `lacuna eval` of a classifier of texts.
pub fn evaluate(model: Model, options: &Eval) -> Result<()> {
    let Some(data) = &options.data else {
        let what = "takes texts (give --data FILE, such as reviews-test.tsv)";
        return Err(Failure::usage(format!("{}: {what}", model.path().display())));
    };
    // A training file stands for the test file beside it; any other is meant itself.
    let file = match find_pair(data) {
        Ok([_, test]) => test,
        Err(_) if data.is_file() => data.clone(),
        Err(e) => return Err(e.into()),
    };
    let trained = match &model {
        Model::Trained(trained) if options.burn => Some((trained.net.clone(), trained.pass)),
        Model::File { path, .. } if options.burn => {
            return Err(Failure::usage(format!(
                "{}: --burn runs weights, not ONNX files (give the run folder, or leave --burn out)",
                path.display()
            )));
        }
        _ => None,
    };
    let (graph, tokenizer, most, path) = opened(model, options.tokenizer.as_deref(), None)?;
    let found = texts::load(&file)?;
    let names = graph.metadata("lacuna.classes").and_then(|text| serde_json::from_str(text).ok());
    let Some(classes): Option<Vec<String>> = names else {
        let what = "does not say its classes (metadata lacuna.classes): train it with lacuna";
        return Err(Failure::input(format!("{}: {what}", path.display())));
    };
    let labels = numbers_of(&found, &classes)?;
    let mut set = text_set(&tokenizer, &found.texts, labels, classes, most)?;
    if let Some(n) = options.max_images {
        set = set.take(n as usize);
    }
    let start = Instant::now();
    let correct = match trained {
        Some((net, pass)) => {
            // The share was made from this whole number.
            let top1 = lacuna_train::evaluate(&net, &set, &pass)?.first().map_or(0.0, |score| score.1);
            (top1 * set.len() as f64).round() as usize
        }
        None => {
            let threads = options.threads.map(|n| n as usize);
            let bar = term::bar(set.len() as u64);
            let correct = TextClassifier::new(&graph, set.filler, threads)?.correct(&set, |n| bar.inc(n));
            bar.finish_and_clear();
            correct?
        }
    };
    let result = Evaluation::new(set.len(), correct, start.elapsed().as_secs_f64());
    let place = file.display().to_string();
    let data = format!("{place} ({} classes, up to {most} tokens)", set.classes.len());
    let runs_on = if options.burn { "burn" } else { "engine" };
    eval::show(&path.display().to_string(), [place, data], "texts", runs_on, &result, options.json);
    Ok(())
}
