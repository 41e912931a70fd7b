//! Which kernel runs a layer, and how threads share it out: by the cost model, then by measurement if asked.
//!
//! The cost model ranks all kernels that can run a layer and says what to pack for. Measuring runs the whole plan
//! a few times, each time with the next candidate of every layer, and times every step: candidates are compared
//! in the place where they will run, with the caches as the steps before leave them. All candidates of an integer
//! layer give the same bytes, so its results never depend on what was measured; those of an f32 layer differ
//! within the bounds of `crate::kernels`.

use super::cost::{conv_ns, dense_slots, sparse_slots};
use super::meetings::set_barriers;
use super::weights::{Chosen, Request, Weights};
use super::{Plan, Split};
use crate::kernels::{
    CONV_KERNELS, ConvGeom, ConvKernel, ConvWeights, KernelType, Method, Packed, count_nonzeros,
};
use crate::target::{Isa, Target};
use std::path::Path;
use std::time::Instant;

/// Which kernels the planner may choose from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelChoice {
    /// The cheaper one.
    #[default]
    Auto,
    /// Sparse kernels only where there is no dense one.
    Dense,
    /// Dense kernels only where there is no sparse one.
    Sparse,
}

/// What choosing depends on, beside the layers.
pub struct How<'a> {
    pub target: &'a Target,
    pub choice: KernelChoice,
    /// Keep more than one candidate of a layer, to be measured.
    pub tune: bool,
    /// Where to look for what was measured before.
    pub cache: Option<&'a Path>,
}

/// How the threads share a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    pub split: Split,
    pub parts: usize,
}

impl Pick {
    /// Of a layer that runs with others.
    pub const BANDED: Pick = Pick { split: Split::Banded, parts: 1 };
}

/// The outcome of a measurement, as it is kept on disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    /// Row of `CONV_KERNELS`.
    pub kernel: usize,
    pub pick: Pick,
    /// What was measured, in words.
    pub reason: String,
}

/// A layer's weights packed for one kernel.
#[derive(Debug)]
pub struct Candidate {
    pub kernel: usize,
    pub packed: Packed,
    /// Estimated nanoseconds on one thread.
    pub ns: f64,
}

/// A layer's candidates, the best by estimate first.
#[derive(Debug)]
pub struct Ranked {
    pub candidates: Vec<Candidate>,
    /// Elements of the weights.
    pub weights: u64,
    pub reason: String,
    pub known: Option<Known>,
}

/// Above this density no sparse kernel can win, and packing for one would be wasted.
const SPARSE_DENSITY_MAX: f64 = 0.75;
/// A candidate that is expected to take so many times as long as the best is not measured.
const HOPELESS: f64 = 3.0;
/// Kernels of one kind that are packed for to be measured.
const KERNELS_MEASURED: usize = 2;
/// Kernels and ways to share them out that are measured for one layer.
const ENTRIES_MAX: usize = 6;
/// Below this a step stays on one thread: meeting costs more than it saves.
const PARALLEL_NS: f64 = 1500.0;

/// Packs a layer's weights for the kernels that may be best. `None` if there is no kernel for the geometry.
pub fn rank(
    geom: &ConvGeom,
    weights: &ConvWeights<'_>,
    how: &How<'_>,
    known: Option<&Known>,
) -> Option<Ranked> {
    let whole = is_whole(weights);
    let takes = |dtype: KernelType| match (dtype, weights) {
        (KernelType::Int8, ConvWeights::Int8 { .. }) | (KernelType::F32, ConvWeights::F32 { .. }) => true,
        (KernelType::Bf16, ConvWeights::F32 { .. }) => how.target.bf16 && !whole,
        _ => false,
    };
    let usable = |k: &ConvKernel| k.isa <= how.target.isa && takes(k.dtype) && (k.supports)(geom);
    let (elements, nonzeros) = count(weights);
    let density = nonzeros as f64 / elements.max(1) as f64;
    let pack = |kernel: usize| {
        let packed = (CONV_KERNELS[kernel].pack)(weights, geom);
        Candidate { kernel, ns: conv_ns(&CONV_KERNELS[kernel], geom, packed.slots), packed }
    };
    if let Some(known) = known.filter(|k| usable(&CONV_KERNELS[k.kernel])) {
        return Some(Ranked {
            candidates: vec![pack(known.kernel)],
            weights: elements,
            reason: format!("density {density:.3}; {}", known.reason),
            known: Some(known.clone()),
        });
    }
    // The best of each kind, by what packing is expected to give; of equals the later row, which is faster.
    let most = if how.tune { KERNELS_MEASURED } else { 1 };
    let best = |methods: &[Method]| {
        let slots = |k: &ConvKernel| match k.method == Method::Sparse && k.isa != Isa::Amx {
            true => sparse_slots(geom, nonzeros),
            false => dense_slots(geom),
        };
        let rows = CONV_KERNELS.iter().enumerate().filter(|(_, k)| methods.contains(&k.method) && usable(k));
        let mut rows: Vec<(f64, usize)> = rows.map(|(i, k)| (conv_ns(k, geom, slots(k)), i)).collect();
        rows.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        rows.truncate(most);
        rows
    };
    let (mut sparse, mut dense) = (best(&[Method::Sparse]), best(&[Method::Direct]));
    if !whole {
        dense.extend(best(&[Method::Winograd(2), Method::Winograd(4)]));
    }
    match how.choice {
        KernelChoice::Auto if density <= SPARSE_DENSITY_MAX => {}
        KernelChoice::Auto | KernelChoice::Dense if !dense.is_empty() => sparse.clear(),
        KernelChoice::Sparse if !sparse.is_empty() => dense.clear(),
        _ => {}
    }
    let rows: Vec<(f64, usize)> = sparse.into_iter().chain(dense).collect();
    let limit = HOPELESS * rows.iter().map(|r| r.0).reduce(f64::min)?;
    let mut candidates: Vec<Candidate> =
        rows.iter().filter(|r| r.0 <= limit).map(|&(_, kernel)| pack(kernel)).collect();
    candidates.sort_by(|a, b| a.ns.total_cmp(&b.ns));
    let mut reason = format!("density {density:.3}");
    for Candidate { kernel, packed, ns } in &candidates {
        let fill = packed.nonzeros as f64 / packed.slots.max(1) as f64;
        let kernel = &CONV_KERNELS[*kernel];
        reason += &format!("; {} {:.1} us", kernel.kind(), ns / 1e3);
        if kernel.method == Method::Sparse {
            reason += &format!(" at slot efficiency {fill:.2}");
        }
    }
    match how.choice {
        _ if candidates.len() > 1 => {}
        KernelChoice::Auto if density > SPARSE_DENSITY_MAX => reason += "; too dense for a sparse kernel",
        KernelChoice::Auto if rows.len() > 1 => reason += "; nothing else comes near",
        KernelChoice::Auto => reason += "; the only kind of kernel for this",
        KernelChoice::Dense | KernelChoice::Sparse => reason += "; as asked",
    }
    if !how.tune {
        candidates.truncate(1);
    }
    Some(Ranked { candidates, weights: elements, reason, known: None })
}

/// Elements of the weights and how many are not zero.
fn count(weights: &ConvWeights<'_>) -> (u64, u64) {
    match weights {
        ConvWeights::Int8 { w, .. } => (w.len() as u64, count_nonzeros(w)),
        ConvWeights::F32 { w, .. } => (w.len() as u64, w.iter().filter(|&&x| x != 0.0).count() as u64),
    }
}

/// Whether weights are whole numbers: products of integers that run in f32, whose sums are exact without the fractions of
/// Winograd's transforms and without rounding to bfloat16.
fn is_whole(weights: &ConvWeights<'_>) -> bool {
    match weights {
        ConvWeights::Int8 { .. } => true,
        ConvWeights::F32 { w, .. } => w.iter().all(|w| w.fract() == 0.0),
    }
}

/// Ways to share a layer out, the best by balance first.
///
/// The best is that whose largest part is smallest. Among equals, pixels are shared out where the threads together would
/// read fewer bytes so, and channels where weights are the larger part.
fn picks(geom: &ConvGeom, kernel: &ConvKernel, slots: u64, ns: f64, threads: usize) -> Vec<Pick> {
    const COLS: u32 = 16;
    /// Less balanced by so much than the best is not worth a measurement.
    const UNBALANCED: f64 = 0.25;
    if threads == 1 || ns < PARALLEL_NS {
        return vec![Pick { split: Split::Rows, parts: 1 }];
    }
    let balance = |units: u32| {
        let units = units as usize;
        units as f64 / (units.div_ceil(threads) * threads) as f64
    };
    let channels = kernel.oc_granule;
    let read = geom.rows as u64 * geom.sh as u64 * geom.ow as u64 * geom.sw as u64 * geom.c as u64;
    let (by_pixels, by_channels) = if slots > read { (-0.1, 0.0) } else { (0.0, -0.05) };
    let mut options = [
        (Split::Rows, balance(geom.rows) + by_pixels),
        (Split::Cols(COLS), balance(geom.ow.div_ceil(COLS)) - 0.05 + by_pixels),
        (Split::Channels(channels), balance(geom.oc.div_ceil(channels)) + by_channels),
    ];
    options.sort_by(|a, b| b.1.total_cmp(&a.1));
    let least = options[0].1 - UNBALANCED;
    let good = options.into_iter().filter(|o| o.1 >= least);
    good.map(|(split, _)| Pick { split, parts: threads }).collect()
}

/// How to share a layer whose kernel is known.
pub fn pick_for(chosen: &Chosen, geom: &ConvGeom, banded: bool, threads: usize) -> (Pick, f64) {
    let kernel = &CONV_KERNELS[chosen.kernel];
    let ns = conv_ns(kernel, geom, chosen.slots);
    let pick = match &chosen.measured {
        _ if banded => Pick::BANDED,
        Some((measured, pick)) if measured == geom && pick.split != Split::Banded => *pick,
        _ => picks(geom, kernel, chosen.slots, ns, threads)[0],
    };
    (pick, ns)
}

/// Writes a choice into the rows of a plan.
pub fn apply(plan: &mut Plan, conv: usize, step: usize, chosen: &Chosen, pick: Pick, ns: f64) {
    let row = &mut plan.convs[conv];
    (row.kernel, row.weights, row.split) = (chosen.kernel, chosen.blob, pick.split);
    plan.step_parts[step] = pick.parts as u32;
    let info = &mut plan.step_info[step];
    info.kernel = CONV_KERNELS[chosen.kernel].name;
    (info.weights, info.nonzeros) = (chosen.weights, chosen.nonzeros);
    info.slot_efficiency = chosen.slot_efficiency();
    info.estimated_ns = ns;
    info.reason.clone_from(&chosen.reason);
}

/// A layer with several candidates, the best by estimate first.
pub struct Contest {
    request: Request,
    entries: Vec<Entry>,
}

struct Entry {
    chosen: Chosen,
    pick: Pick,
    /// Estimated nanoseconds on one thread; the least that was measured, on all.
    ns: f64,
    measured: f64,
}

/// Gives every layer its best candidate, and returns those that are to be measured.
pub fn settle(
    plan: &mut Plan,
    weights: &mut Weights,
    layers: Vec<Request>,
    ranked: Vec<Ranked>,
    how: &How<'_>,
) -> Vec<Contest> {
    let mut contests = Vec::new();
    for (request, ranked) in layers.into_iter().zip(ranked) {
        let mut entries = Vec::new();
        for Candidate { kernel, packed, ns } in ranked.candidates {
            let mut chosen = Chosen {
                kernel,
                blob: 0,
                weights: ranked.weights,
                nonzeros: packed.nonzeros,
                slots: packed.slots,
                reason: ranked.reason.clone(),
                measured: ranked.known.as_ref().map(|k| (request.geom, k.pick)),
            };
            let ways = match &ranked.known {
                _ if request.banded => vec![Pick::BANDED],
                Some(known) => vec![known.pick],
                None => picks(&request.geom, &CONV_KERNELS[kernel], packed.slots, ns, how.target.threads),
            };
            chosen.blob = weights.push(packed.bytes);
            let entry = |(i, pick)| (i, Entry { chosen: chosen.clone(), pick, ns, measured: f64::INFINITY });
            entries.extend(ways.into_iter().enumerate().map(entry));
        }
        // Every kernel's best way before any kernel's second.
        entries.sort_by_key(|(i, _)| *i);
        entries.truncate(ENTRIES_MAX);
        let entries: Vec<Entry> = entries.into_iter().map(|(_, entry)| entry).collect();
        let first = &entries[0];
        apply(plan, request.conv, request.step, &first.chosen, first.pick, first.ns);
        weights.insert(request.key, first.chosen.clone());
        if how.tune && entries.len() > 1 {
            contests.push(Contest { request, entries });
        }
    }
    contests
}

/// Runs over the plan, at most: each tells the time of one candidate of every layer.
const SWEEPS_MAX: usize = 5;
/// What all runs together may take, per layer.
const TUNE_NS_PER_LAYER: f64 = 2e6;
/// Runs of each way for all layers.
const RUNS_TOGETHER: usize = 5;
/// A candidate must be faster than the one expected to be by this factor.
const GAIN: f64 = 0.97;

/// Times the candidates of all layers and gives each layer the fastest. `run` runs a plan and, if asked, fills in the time
/// of every step, in nanoseconds. Weights that lost are given back.
pub fn measure(
    plan: &mut Plan,
    weights: &mut Weights,
    mut contests: Vec<Contest>,
    mut run: impl FnMut(&Plan, Option<&mut [u64]>),
) {
    let mut times = vec![0; plan.steps()];
    // The first run is a cold one.
    run(plan, Some(&mut times));
    let rounds = contests.iter().map(|c| c.entries.len()).max().unwrap_or(0);
    let of_round = |round: usize| contests.iter().map(|c| round % c.entries.len()).collect();
    let mut ways: Vec<Vec<usize>> = (0..rounds).map(of_round).collect();
    let mut least = vec![f64::INFINITY; rounds];
    let (mut spent, budget) = (0.0, TUNE_NS_PER_LAYER * plan.convs.len() as f64);
    for _ in 0..SWEEPS_MAX {
        for (way, least) in ways.iter().zip(&mut least) {
            apply_way(plan, &contests, way);
            run(plan, Some(&mut times));
            let all = times.iter().sum::<u64>() as f64;
            spent += all;
            *least = least.min(all);
            for (Contest { request, entries }, &at) in contests.iter_mut().zip(way) {
                let ns = times[request.step] as f64;
                entries[at].measured = entries[at].measured.min(ns);
            }
        }
        if spent > budget {
            break;
        }
    }
    // A layer is fast where it finds what the layer before left in its own core's caches, and starts early where threads
    // need not meet before it: neither shows when every step is timed by itself. So ways for all layers are timed as a whole:
    // every layer's fastest by pixels, every layer's fastest, and the best round. The first of these needs the least of what
    // threads find in each other's caches, which is dearer at other times.
    let of_layer = |by_pixels: bool| {
        let time = move |e: &Entry| match e.pick.split {
            Split::Channels(_) if by_pixels => f64::INFINITY,
            _ => e.measured,
        };
        contests.iter().map(|c| fastest(c.entries.iter().map(time))).collect::<Vec<usize>>()
    };
    let mut ways = [of_layer(true), of_layer(false), ways.swap_remove(fastest(least.into_iter()))];
    let mut least = [f64::INFINITY; 3];
    for _ in 0..RUNS_TOGETHER {
        for (way, least) in ways.iter().zip(&mut least) {
            apply_way(plan, &contests, way);
            set_barriers(plan);
            let begin = Instant::now();
            run(plan, None);
            *least = least.min(begin.elapsed().as_nanos() as f64);
        }
    }
    let way = std::mem::take(&mut ways[fastest(least.into_iter())]);
    for (Contest { request: r, mut entries }, winner) in contests.into_iter().zip(way) {
        let told: Vec<String> = entries.iter().map(Entry::tell).collect();
        let winner = entries.swap_remove(winner);
        for loser in entries.iter().filter(|e| e.chosen.blob != winner.chosen.blob) {
            weights.release(loser.chosen.blob);
        }
        let density = winner.chosen.nonzeros as f64 / winner.chosen.weights.max(1) as f64;
        let reason = format!("density {density:.3}; measured {}", told.join(", "));
        let chosen = Chosen { reason, measured: Some((r.geom, winner.pick)), ..winner.chosen };
        apply(plan, r.conv, r.step, &chosen, winner.pick, winner.ns);
        weights.insert(r.key, chosen);
    }
    set_barriers(plan);
}

/// The first, or another that takes less by more than chance.
fn fastest(times: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::INFINITY);
    for (i, time) in times.enumerate() {
        let gain = if best.0 == 0 && i > 0 { GAIN } else { 1.0 };
        if time < best.1 * gain {
            best = (i, time);
        }
    }
    best.0
}

/// Gives every layer the entry that `way` names for it.
fn apply_way(plan: &mut Plan, contests: &[Contest], way: &[usize]) {
    for (Contest { request: r, entries }, &i) in contests.iter().zip(way) {
        apply(plan, r.conv, r.step, &entries[i].chosen, entries[i].pick, entries[i].ns);
    }
}

impl Entry {
    fn tell(&self) -> String {
        let kind = CONV_KERNELS[self.chosen.kernel].kind();
        let isa = CONV_KERNELS[self.chosen.kernel].isa;
        let by = match self.pick.split {
            Split::Banded => "in bands",
            _ if self.pick.parts == 1 => "on one thread",
            Split::Rows => "by rows",
            Split::Cols(_) => "by columns",
            Split::Channels(_) => "by channels",
        };
        format!("{kind} {isa} {by} {:.1} us", self.measured / 1e3)
    }
}
