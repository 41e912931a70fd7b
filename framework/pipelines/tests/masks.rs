//! Masks against plain computations.

use lacuna_data::RgbImage8;
use lacuna_pipelines::Detection;
use lacuna_pipelines::detector::Segment;
use lacuna_pipelines::draw::draw_segments;
use lacuna_pipelines::heads::{Head, Prototypes, Result as Output};
use lacuna_pipelines::letterbox::{Letterbox, Placement, letterbox};
use lacuna_pipelines::masks::{Mask, mask};
use lacuna_pipelines::priors::{Level, Order, Priors, Scores};

/// Every pixel of a mask, row by row.
fn bits(mask: &Mask) -> Vec<bool> {
    let [h, w] = mask.size;
    let mut bits = vec![false; h * w];
    for (x, rows) in mask.pixels() {
        rows.for_each(|y| bits[y * w + x] = true);
    }
    bits
}

/// COCO's run lengths, from the bits one by one.
fn run_lengths(bits: &[bool], [h, w]: [usize; 2]) -> Vec<u32> {
    let (mut counts, mut last) = (vec![0], false);
    for i in 0..h * w {
        let bit = bits[i % h * w + i / h];
        if bit != last {
            counts.push(0);
            last = bit;
        }
        *counts.last_mut().unwrap() += 1;
    }
    counts
}

fn values(n: usize, seed: u32) -> Vec<f32> {
    let mut state = 12_345u32.wrapping_add(seed.wrapping_mul(2_654_435_761));
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// The sum of prototypes at every pixel of the picture, between prototypes' pixels linear, without looking at boxes.
fn plain(
    c: &[f32],
    planes: &[f32],
    [ph, pw]: [usize; 2],
    input: [usize; 2],
    placed: &Letterbox,
) -> Vec<bool> {
    let (h, w) = (placed.picture[1] as usize, placed.picture[0] as usize);
    let soft = |y: usize, x: usize| {
        let sum: f64 =
            c.iter().enumerate().map(|(k, c)| f64::from(*c) * f64::from(planes[(k * ph + y) * pw + x])).sum();
        1.0 / (1.0 + (-sum).exp())
    };
    let one = |y: usize, x: usize| {
        let place = |at: usize, axis: usize, cells: usize, side: usize| {
            let inner = (at as f64 + 0.5) * f64::from(placed.scale[axis]) + f64::from(placed.origin[axis]);
            (inner * cells as f64 / side as f64 - 0.5).clamp(0.0, (cells - 1) as f64)
        };
        let (v, u) = (place(y, 1, ph, input[0]), place(x, 0, pw, input[1]));
        let tent = |at: f64, i: usize| (1.0 - (at - i as f64).abs()).max(0.0);
        let all = (0..ph).flat_map(|i| (0..pw).map(move |j| (i, j)));
        all.map(|(i, j)| tent(v, i) * tent(u, j) * soft(i, j)).sum::<f64>() > 0.5
    };
    (0..h * w).map(|i| one(i / w, i % w)).collect()
}

#[test]
fn masks_are_sums_of_prototypes_inside_the_box() {
    let picture = RgbImage8 { h: 30, w: 44, pixels: vec![0; 30 * 44 * 3] };
    let (input, prototypes) = ([32, 40], Prototypes { count: 3, h: 8, w: 10 });
    let planes = values(3 * 8 * 10, 1);
    for (placement, seed) in [(Placement::Centre, 2), (Placement::TopLeft, 3), (Placement::Stretch, 4)] {
        let (_, placed) = letterbox(&picture, input[0], input[1], placement).unwrap();
        let coefficients: Vec<f32> = values(3, seed).iter().map(|v| 4.0 * v).collect();
        let want = plain(&coefficients, &planes, [8, 10], input, &placed);
        let inside = want.iter().filter(|&&bit| bit).count();
        assert!((100..1220).contains(&inside), "{inside} pixels say nothing");
        for corners in [[0.0, 0.0, 44.0, 30.0], [3.2, 4.0, 30.9, 21.5], [43.0, 29.0, 44.0, 30.0]] {
            let have = mask(&coefficients, &planes, prototypes, input, &placed, corners);
            let cut = |i: usize| {
                let (x, y) = ((i % 44) as f32, (i / 44) as f32);
                want[i] && x >= corners[0] && x < corners[2] && y >= corners[1] && y < corners[3]
            };
            let want: Vec<bool> = (0..30 * 44).map(cut).collect();
            let have_bits = bits(&have);
            assert_eq!(have_bits, want, "{placement:?} {corners:?}");
            assert_eq!(have.counts, run_lengths(&want, [30, 44]));
            assert_eq!(have.area(), want.iter().filter(|&&bit| bit).count());
        }
    }
    let (_, placed) = letterbox(&picture, input[0], input[1], Placement::Centre).unwrap();
    let none = mask(&[1.0; 3], &planes, prototypes, input, &placed, [5.0, 5.0, 5.0, 9.0]);
    assert_eq!((none.counts.as_slice(), none.area()), (&[30 * 44][..], 0));
}

/// Three ways of giving coefficients beside boxes.
#[test]
fn every_box_has_its_own_coefficients() {
    let planes = [0.0; 2 * 4];
    let prototypes = Output { dims: &[2, 2, 2], values: &planes };
    // [4 + 1 class + 2 masks, 3 boxes]
    let table: Vec<f32> = (0..21).map(|v| v as f32).collect();
    let columns = Output { dims: &[7, 3], values: &table };
    let shapes = |outputs: &[Output<'_>]| outputs.iter().map(|o| o.dims.to_vec()).collect::<Vec<_>>();
    let outputs = [columns, prototypes];
    assert_eq!(Head::Columns.classes(&shapes(&outputs), [8, 8]), Some(1));
    assert_eq!(Head::Columns.coefficients(&outputs, 1), [16.0, 19.0]);
    let found = Head::Columns.candidates(&outputs, [8, 8], 13.0);
    assert_eq!(
        found.iter().map(|c| (c.place, c.detection.score)).collect::<Vec<_>>(),
        [(1, 13.0), (2, 14.0)]
    );

    // Maps of strides 2 and 4: 2 x 3 cells, then 1 x 1; one class and bins of one.
    let head = Head::Dfl { strides: vec![2, 4], bins: 1 };
    let (boxes, low) = ([-9.0; 5 * 6], [9.0; 5]);
    let (a, b) = ((0..12).map(|v| v as f32).collect::<Vec<_>>(), [70.0, 71.0]);
    let outputs = [
        Output { dims: &[5, 2, 3], values: &boxes },
        Output { dims: &[5, 1, 1], values: &low },
        Output { dims: &[2, 2, 3], values: &a },
        Output { dims: &[2, 1, 1], values: &b },
        prototypes,
    ];
    let contents = head.contents(&shapes(&outputs), [4, 6]).unwrap();
    assert_eq!((contents.classes, contents.masks.unwrap().count), (1, 2));
    assert_eq!(head.coefficients(&outputs, 4), [4.0, 10.0]);
    let found = head.candidates(&outputs, [4, 6], 0.9);
    assert_eq!(found.iter().map(|c| c.place).collect::<Vec<_>>(), [6]);
    assert_eq!(head.coefficients(&outputs, found[0].place), [70.0, 71.0]);
    assert_eq!(head.contents(&shapes(&outputs[..4]), [4, 6]), None);

    let level = Level { cells: [1, 3], step: [1.0 / 3.0, 1.0], sizes: vec![[0.5; 2]] };
    let head = Head::Priors(Priors {
        levels: vec![level],
        order: Order::Cells,
        y_first: false,
        variances: [0.1, 0.2],
        scores: Scores::Shares,
    });
    let outputs = [
        Output { dims: &[3, 4], values: &[0.0; 12] },
        Output { dims: &[3, 2], values: &[0.0, 0.1, 0.0, 0.2, 0.0, 0.9] },
        Output { dims: &[3, 2], values: &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0] },
        prototypes,
    ];
    let found = head.candidates(&outputs, [8, 8], 0.5);
    assert_eq!(found.len(), 1);
    assert_eq!(head.coefficients(&outputs, found[0].place), [5.0, 6.0]);
}

#[test]
fn masks_colour_their_pixels() {
    let mut drawn = RgbImage8 { h: 40, w: 40, pixels: vec![7; 40 * 40 * 3] };
    // Columns 10 and 11, rows 20 to 24.
    let mask = Mask { size: [40, 40], counts: vec![420, 5, 35, 5, 1135] };
    assert_eq!(mask.pixels().collect::<Vec<_>>(), [(10, 20..25), (11, 20..25)]);
    // A run that goes on in the next column.
    let long = Mask { size: [4, 3], counts: vec![2, 5, 5] };
    assert_eq!(long.pixels().collect::<Vec<_>>(), [(0, 2..4), (1, 0..3)]);
    let detection = Detection { corners: [2.0, 10.0, 38.0, 38.0], class: 0, score: 0.5 };
    draw_segments(&mut drawn, &[Segment { detection, mask }], &["cat".to_owned()]);
    let pixel = |y: usize, x: usize| drawn.pixels[(y * 40 + x) * 3..][..3].to_vec();
    assert_eq!(pixel(22, 10), [(0xc0 + 7) / 2, (0x39 + 7) / 2, (0x2b + 7) / 2]);
    assert_eq!([pixel(22, 12), pixel(25, 10), pixel(19, 10)], [[7; 3]; 3].map(Vec::from));
}
