//! What a recipe asks for and training does not do yet is refused by name, before a step is spent.

use burn::tensor::Device;
use lacuna_models::MODELS;
use lacuna_nn::layers::Init;
use lacuna_train::trainer::compile;

const SCHEME: &str = "scheme: {input_activations: {num_bits: 8, symmetric: False}, \
                      weights: {num_bits: 8, symmetric: True, strategy: channel}}";

fn compiled(modifier: &str) -> Result<(), String> {
    let text =
        format!("modifiers:\n  - !EpochRangeModifier {{start_epoch: 0.0, end_epoch: 2.0}}\n  - {modifier}\n");
    let recipe = lacuna_recipe::parse(&text, "recipe.yaml", &[]).map_err(|d| lacuna_recipe::render(&d))?;
    let net = (MODELS[0].build)(&mut Init::new(&Device::flex(), 0));
    compile(&net, &recipe, 4).map(|_| ()).map_err(|e| e.to_string())
}

#[test]
fn the_supported_scheme_compiles() {
    compiled(&format!("!QuantizationModifier {{start_epoch: 0.0, {SCHEME}}}")).unwrap();
}

#[test]
fn what_is_not_carried_out_is_refused() {
    let cases = [
        ("!QuantizationModifier {start_epoch: 0.0}", "strategy: channel"),
        (
            "!QuantizationModifier {start_epoch: 0.0, scheme: {input_activations: {num_bits: 4, symmetric: False}, \
             weights: {num_bits: 8, symmetric: True, strategy: channel}}}",
            "8-bit asymmetric",
        ),
        (&format!("!QuantizationModifier {{start_epoch: 0.0, ignore: [fc], {SCHEME}}}"), "whole models"),
    ];
    for (modifier, says) in cases {
        let why = compiled(modifier).expect_err(modifier);
        assert!(why.contains(says) && why.contains("Modifier"), "{modifier}: {why}");
    }
}
