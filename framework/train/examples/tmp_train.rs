use lacuna_models::resnet::*;
use lacuna_nn::layers::Init;
use lacuna_train::{run_folder::RunFolder, trainer::Progress, *};
use std::path::Path;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    // recipe overrides name max_images weights data
    let overrides = lacuna_recipe::parse_overrides(&a[2]).unwrap();
    let recipe =
        lacuna_recipe::Recipe::load(&a[1], &overrides).map_err(|d| lacuna_recipe::render(&d)).unwrap();
    let data = if a.len() > 6 { Some(Path::new(&a[6])) } else { None };
    let (train, test, source) = lacuna_data::fashion_mnist::load(data).unwrap();
    println!("{source}");
    let d = burn::tensor::Device::flex().autodiff();
    let mut m = ResNet::new(&RESNET_SIZES[0], &mut Init::new(&d, 1));
    if a[5] != "-" {
        m = weights::load(m, Path::new(&a[5])).unwrap().0;
    }
    let folder = RunFolder::create(Path::new("/tmp/runs"), &a[3], true).unwrap();
    let t = std::time::Instant::now();
    let mut report = |p: Progress<'_>| match p {
        Progress::Schedule { schedule, .. } => println!("{}", schedule.table()),
        Progress::Epoch(r) => println!("{:.0}s {r:?}", t.elapsed().as_secs_f64()),
        _ => {}
    };
    let args = TrainArgs { max_images: a[4].parse().ok(), ..Default::default() };
    let out = fit(
        m,
        Fit {
            args,
            recipe: &recipe,
            train: train.into(),
            test: &test,
            folder: &folder,
            metadata: Default::default(),
            resume: false,
            report: &mut report,
        },
    )
    .unwrap();
    println!("final {} best {}", out.accuracy, out.best_accuracy);
}
