//! Chains of layers that run a band of lines at a time give what they give one by one.

mod common;

use common::{Net, Rng, input, mobile};
use lacuna_engine::{Isa, Options, Session, Tune};
use lacuna_ir::op::Window;
use lacuna_ir::{Attr, Graph, OpKind, ValueId};

/// No value is large enough for bands.
const NEVER: Option<usize> = Some(usize::MAX / 4);

fn bands(s: &Session) -> usize {
    s.steps().iter().filter(|s| s.kernel == "bands_of_lines").count()
}

/// A window of few taps, with what the rows of kernels tell apart and borders that differ from side to side.
fn window(rng: &mut Rng) -> Window {
    let mut pick = |of: &[u32]| of[(rng.unit() * of.len() as f32) as usize];
    let (k, stride, dilation) = (pick(&[2, 3, 3, 3, 5]), pick(&[1, 1, 2]), pick(&[1, 1, 1, 2]));
    let pads = [0; 4].map(|_: u32| pick(&[0, 1, 1, 2]));
    Window { kernel: [k; 2], stride: [stride; 2], dilation: [dilation; 2], pads }
}

/// A layer of a chain, with or without an activation that clips, or one that is done where results are written.
fn layer(net: &mut Net, x: ValueId, rng: &mut Rng) -> ValueId {
    let c = net.g.shape(x)[1].fixed().unwrap() as usize;
    let y = match (rng.unit() * 4.0) as u32 {
        0 | 1 => {
            let window = window(rng);
            net.conv_raw(x, c, window, c as u32)
        }
        2 => net.conv(x, 8 + (rng.unit() * 24.0) as usize, 1, 1, 0),
        // Lines that nothing reads lie between those that are read.
        _ => net.conv(x, 8 + (rng.unit() * 24.0) as usize, 1, 2, 0),
    };
    match (rng.unit() * 4.0) as u32 {
        0 => y,
        1 => net.relu(y),
        2 => net.silu(y),
        // What was before, where it fits: then the chain ends here.
        _ if net.g.shape(x) == net.g.shape(y) => net.op(OpKind::Add, Attr::None, &[y, x]),
        _ => y,
    }
}

fn chain(seed: u64) -> Graph {
    let mut rng = Rng(seed);
    let (h, w) = (40 + (rng.unit() * 30.0) as usize, 40 + (rng.unit() * 30.0) as usize);
    let (mut net, x) = Net::new("chain", false, 0.0, &[3, h, w]);
    net.rng = Rng(seed + 1);
    // What lies in memory before the windows do.
    let x = net.conv_relu(x, 16, 3, 1, 1);
    let mut x = net.conv_relu(x, 16, 3, 2, 1);
    for _ in 0..2 + (rng.unit() * 5.0) as usize {
        // Until the widest window would not fit.
        if net.g.shape(x)[2..].iter().all(|d| d.fixed().unwrap() > 8) {
            x = layer(&mut net, x, &mut rng);
        }
    }
    net.finish(&[x])
}

/// A layer that widens, one along the image, and one that narrows and adds what the first one reads.
fn block(net: &mut Net, x: ValueId) -> ValueId {
    let y = net.conv_relu(x, 48, 1, 1, 0);
    let y = net.conv_raw(y, 48, common::window(3, 1, 1, 1), 48);
    let y = net.conv(y, 16, 1, 1, 0);
    net.op(OpKind::Add, Attr::None, &[y, x])
}

/// The sum must not lie over what it adds: other threads still read that.
#[test]
fn a_chain_ends_with_the_sum_of_a_block() {
    let (mut net, x) = Net::new("blocks", false, 0.0, &[3, 96, 96]);
    let x = net.conv_relu(x, 16, 3, 2, 1);
    let x = block(&mut net, x);
    let x = block(&mut net, x);
    let g = net.finish(&[x]);
    for threads in [1, 2, 4] {
        let session = |cache_bytes| {
            Session::new(&g, &Options { threads: Some(threads), cache_bytes, ..Options::default() }).unwrap()
        };
        let (mut whole, mut banded) = (session(NEVER), session(Some(60 << 10)));
        // The first layer, whose result two read, is not in a chain.
        assert_eq!((bands(&whole), bands(&banded)), (0, 2));
        for batch in [1, 2] {
            let x = [input(&g, batch, 11)];
            assert!(whole.run(&x).unwrap() == banded.run(&x).unwrap(), "{threads} threads, batch {batch}");
        }
    }
}

#[test]
fn chains_in_bands_equal_layers_one_by_one() {
    let mut chains = 0;
    for seed in 0..24 {
        let g = chain(seed);
        for isa in [Isa::Portable, Isa::Avx2, Isa::detect()].into_iter().filter(|isa| isa.is_available()) {
            for (threads, cache) in [(1, 2 << 10), (1, 8 << 10), (1, 20 << 10), (2, 20 << 10), (3, 14 << 10)]
            {
                let plain =
                    Options { isa: Some(isa), threads: Some(1), cache_bytes: NEVER, ..Options::default() };
                let mut one_by_one = Session::new(&g, &plain).unwrap();
                assert_eq!(bands(&one_by_one), 0);
                let options = Options { threads: Some(threads), cache_bytes: Some(cache), ..plain };
                let mut banded = Session::new(&g, &options).unwrap();
                chains += bands(&banded);
                for batch in [1, 3, 1] {
                    let x = [input(&g, batch, seed + batch as u64)];
                    let (a, b) = (one_by_one.run(&x).unwrap(), banded.run(&x).unwrap());
                    assert_eq!(a[0].dims, b[0].dims);
                    assert!(
                        a == b,
                        "seed {seed}, {isa}, {threads} threads, a cache of {cache}, batch {batch}"
                    );
                }
            }
        }
    }
    // Not every chain fits every cache.
    assert!(chains > 50, "{chains} chains");
}

#[test]
fn a_network_for_phones_is_one_chain() {
    let g = mobile(128, 96);
    let session = |cache_bytes| {
        Session::new(&g, &Options { threads: Some(1), cache_bytes, ..Options::default() }).unwrap()
    };
    assert_eq!(bands(&session(Some(40 << 10))), 1);
    assert!(session(Some(40 << 10)).arena_bytes() < session(NEVER).arena_bytes());
    // Of a small image everything stays in the caches.
    assert_eq!(bands(&session(None)), 0);
}

/// Pairs in which each line of the second layer rests on one line of the first are all that is left.
#[test]
fn chains_are_shorter_where_many_threads_would_do_work_twice() {
    let g = mobile(128, 96);
    let session = |threads| {
        let options = Options { threads: Some(threads), cache_bytes: Some(40 << 10), ..Options::default() };
        Session::new(&g, &options).unwrap()
    };
    assert_eq!((bands(&session(1)), bands(&session(32))), (1, 2));
    let x = [input(&g, 1, 9)];
    assert!(session(1).run(&x).unwrap() == session(32).run(&x).unwrap());
}

#[test]
fn what_others_read_or_the_caller_gets_is_whole() {
    let (mut net, x) = Net::new("read twice", false, 0.0, &[3, 64, 64]);
    let a = net.conv_relu(x, 16, 3, 2, 1);
    let b = net.conv_raw(a, 16, common::window(3, 1, 1, 1), 16);
    let c = net.conv(b, 24, 1, 1, 0);
    let d = net.op(OpKind::Add, Attr::None, &[a, b]);
    let g = net.finish(&[c, d]);
    let session = |cache_bytes| {
        Session::new(&g, &Options { threads: Some(2), cache_bytes, ..Options::default() }).unwrap()
    };
    assert_eq!(bands(&session(Some(8 << 10))), 0);
    let x = [input(&g, 2, 5)];
    assert!(session(Some(8 << 10)).run(&x).unwrap() == session(NEVER).run(&x).unwrap());
}

#[test]
fn layers_in_bands_are_measured_and_profiled_as_others_are() {
    let g = mobile(128, 96);
    let plain = Options { threads: Some(2), cache_bytes: Some(40 << 10), ..Options::default() };
    let x = [input(&g, 1, 3)];
    let mut tuned = Session::new(&g, &Options { tune: Tune::On, ..plain }).unwrap();
    assert!(tuned.steps().iter().any(|s| s.reason.contains("in bands")));
    let profile = tuned.profile(&x, 3).unwrap();
    let layers = profile.iter().filter(|s| s.kind == "FusedConv" && s.weights > 0);
    assert!(layers.clone().count() == 5 && layers.into_iter().all(|s| s.measured_ns.unwrap() > 1e3));
    // A stream, with other windows for its one thread, and the session itself.
    let want = Session::new(&g, &Options { cache_bytes: NEVER, ..plain }).unwrap().run(&x).unwrap();
    let mut stream = tuned.stream(1, 0).unwrap();
    assert_eq!(bands(&stream), 1);
    for got in [tuned.run(&x).unwrap(), stream.run(&x).unwrap()] {
        let far = |(a, b): (&f32, &f32)| (a - b).abs() > 1e-4 * (1.0 + b.abs());
        let (got, want) = (got[0].as_f32().unwrap(), want[0].as_f32().unwrap());
        assert!(got.len() == want.len() && !got.iter().zip(want).any(far));
    }
}
