//! Quantisation begins: the scheme of every layer, as a recipe gives it, becomes the scheme of every place where values are
//! observed.
//!
//! Layers read what other layers make, and values are observed where they are made, once. If all layers that read a place
//! agree on a grid the place has that grid, and everything that reads it, residual sums too, reads integers. Where they
//! disagree (one is left in f32, another has fewer bits) the place only observes, and each layer quantises its own input.

use burn::module::{Module, ParamId};
use lacuna_nn::flow::{self, Meeting};
use lacuna_nn::params::{self, ParamTable};
use lacuna_nn::quant::Pass;
use lacuna_nn::scheme::{Args, LayerScheme, write_site};
use lacuna_nn::{Classifier, Input};
use lacuna_recipe::{LayerRow, LayerScheme as Asked, QuantArgs};
use std::collections::BTreeMap;

/// The layers of a module, and the blocks that can be left out, in the order of the table.
pub fn layers(params: &ParamTable) -> Vec<LayerRow> {
    let mut rows: Vec<LayerRow> = Vec::new();
    for row in 0..params.len() {
        let Some((place, field)) = params.name[row].rsplit_once('.') else { continue };
        let name = match field {
            "removed" | "threshold" => place,
            "scheme" => match place.strip_suffix(".weight_quantizer") {
                Some(layer) => layer,
                None => continue,
            },
            _ => continue,
        };
        let (removable, rectifies) = (field == "removed", field == "threshold");
        let weight = params.row(&weight_name(name));
        match rows.iter_mut().find(|known| known.name == name) {
            Some(known) => known.removable |= removable,
            None => rows.push(LayerRow {
                name: name.to_owned(),
                kind: weight.map_or_else(|| params.layer[row].clone(), |weight| params.layer[weight].clone()),
                has_weight: weight.is_some(),
                removable,
                rectifies,
            }),
        }
    }
    rows
}

/// The module with these layers (rows of [`layers`]) left out, or back in.
pub fn remove<M: Module>(module: M, params: &ParamTable, which: &[u32], removed: bool) -> M {
    fill(module, params, which, "removed", if removed { 1.0 } else { 0.0 })
}

/// The module whose ReLUs at these places (rows of [`layers`]) cut off what is not above `threshold`.
pub fn set_threshold<M: Module>(module: M, params: &ParamTable, which: &[u32], threshold: f32) -> M {
    fill(module, params, which, "threshold", threshold)
}

fn fill<M: Module>(module: M, params: &ParamTable, which: &[u32], field: &str, value: f32) -> M {
    let layers = layers(params);
    let rows: Vec<Option<usize>> =
        which.iter().map(|&l| params.row(&format!("{}.{field}", layers[l as usize].name))).collect();
    params::update_each(module, |row, values| {
        if rows.contains(&Some(row)) {
            values.fill(value);
        }
    })
}

/// What the layers of a module read and make, found by one forward pass of `input` (whose values do not matter).
pub fn flow<M: Classifier>(module: &M, input: impl Into<Input>) -> Vec<Meeting> {
    let module = module.valid();
    flow::record(|| {
        module.results(input, &Pass::default());
    })
}

/// The module with the schemes that `asked` gives to some layers. The others keep theirs where quantisation has begun
/// already (`begun`), else they stay in f32. `fuse` says whether weights are quantised together with their batch norm.
pub fn assign<M: Module>(
    module: M,
    params: &ParamTable,
    flow: &[Meeting],
    asked: &[Asked],
    fuse: bool,
    begun: bool,
) -> M {
    let names = layers(params);
    let mut schemes = vec![LayerScheme::OFF; names.len()];
    if begun {
        let places: BTreeMap<usize, usize> = names
            .iter()
            .enumerate()
            .filter_map(|(i, layer)| Some((params.row(&scheme_name(&layer.name))?, i)))
            .collect();
        params::for_each(&module, |row, values| {
            if let Some(&i) = places.get(&row) {
                schemes[i] = LayerScheme::read(values);
            }
        });
    }
    for layer in asked {
        schemes[layer.layer as usize] = LayerScheme {
            input: layer.quant.input.map(args),
            weight: layer.quant.weight.map(args),
            output: layer.quant.output.map(args),
            folded: fuse,
        };
    }
    let mut changed: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
    for (layer, scheme) in names.iter().zip(&schemes).filter(|(layer, _)| layer.has_weight) {
        let outputs = format!("{}.output_quantizer.scheme", layer.name);
        let rows = [params.row(&scheme_name(&layer.name)), params.row(&outputs)];
        let values = [scheme.write(), write_site(scheme.output)];
        changed.extend(rows.into_iter().zip(values).filter_map(|(row, values)| Some((row?, values))));
    }
    let weights: Vec<Option<ParamId>> =
        names.iter().map(|layer| params.row(&weight_name(&layer.name)).map(|row| params.id[row])).collect();
    let scheme_of = |layer| Some(schemes[weights.iter().position(|&weight| weight == Some(layer))?]);
    for (row, name) in params.name.iter().enumerate() {
        let Some(place) = name.strip_suffix(".range") else { continue };
        let (mut readers, mut makers) = (Vec::new(), Vec::new());
        for meeting in flow {
            match *meeting {
                Meeting::Reads { layer, site } if site == params.id[row] => readers.extend(scheme_of(layer)),
                Meeting::Makes { layer, site } if site == params.id[row] => makers.extend(scheme_of(layer)),
                _ => {}
            }
        }
        let Some(row) = params.row(&format!("{place}.scheme")).filter(|row| !changed.contains_key(row))
        else {
            continue;
        };
        let grid = match readers.is_empty() && makers.is_empty() {
            true => usual_input(&names, &schemes),
            false => grid_of_place(&readers, &makers),
        };
        changed.insert(row, write_site(grid));
    }
    params::update_each(module, |row, values| {
        if let Some(new) = changed.get(&row) {
            values.copy_from_slice(new);
        }
    })
}

/// What the values of a place are put on: what its maker's outputs are, else what all readers agree on. What only sums and
/// pools read is quantised as its maker's input, so that a quantised network adds integers.
fn grid_of_place(readers: &[LayerScheme], makers: &[LayerScheme]) -> Option<Args> {
    let outputs = makers.iter().find_map(|maker| maker.output);
    if outputs.is_some() {
        return outputs;
    }
    match readers {
        [] => makers.iter().find_map(|maker| maker.input.filter(|_| maker.weight.is_some())),
        [first, others @ ..] => first.input.filter(|_| others.iter().all(|other| other.input == first.input)),
    }
}

/// What most layers take. Places that no layer reads or makes, gates and logits, are quantised like that.
fn usual_input(names: &[LayerRow], schemes: &[LayerScheme]) -> Option<Args> {
    let inputs: Vec<Option<Args>> = names
        .iter()
        .zip(schemes)
        .filter(|(layer, _)| layer.has_weight && layer.kind != "Embedding")
        .map(|(_, scheme)| scheme.input)
        .collect();
    let votes = |of: &&Option<Args>| inputs.iter().filter(|input| input == of).count();
    inputs.iter().max_by_key(votes).copied().flatten()
}

fn args(args: QuantArgs) -> Args {
    Args { bits: args.bits, symmetric: args.symmetric, per_channel: args.per_channel }
}

fn weight_name(layer: &str) -> String {
    format!("{layer}.weight")
}

fn scheme_name(layer: &str) -> String {
    format!("{layer}.weight_quantizer.scheme")
}
