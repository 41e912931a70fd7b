//! Prior boxes and what differs from them, against numbers worked out by hand.

use lacuna_pipelines::head_table::{HEADS, find, of_shapes};
use lacuna_pipelines::heads::{Contents, Head, Prototypes, Result as Output};
use lacuna_pipelines::priors::{self, Level, Order, Priors, Scores};

fn close(have: [f32; 4], want: [f32; 4]) {
    let off = have.iter().zip(&want).fold(0f32, |m, (a, b)| m.max((a - b).abs() / b.abs().max(1.0)));
    assert!(off < 1e-5, "{have:?}, not {want:?}");
}

fn nth(priors: &Priors, i: usize) -> [f32; 4] {
    priors.boxes().nth(i).unwrap()
}

#[test]
fn published_plans() {
    let ssd300 = priors::ssd300();
    assert_eq!((ssd300.len(), ssd300.boxes().count()), (8732, 8732));
    // The first square of all 38 x 38 cells, then the second: the last cell of the first, and the first of the second.
    close(nth(&ssd300, 38 * 38 - 1), [1.0, 1.0, 0.07, 0.07]);
    let between = (21f32 * 45.0).sqrt() / 300.0;
    close(nth(&ssd300, 38 * 38), [4.0 / 300.0, 4.0 / 300.0, between, between]);
    // Wide before high; the last of all is high, and as high as the image.
    let r = 2f32.sqrt();
    close(nth(&ssd300, 2 * 38 * 38), [4.0 / 300.0, 4.0 / 300.0, 0.07 * r, 0.07 / r]);
    close(nth(&ssd300, 8731), [0.5, 0.5, 0.87 / r, 1.0]);

    let ssdlite = priors::ssdlite([320, 320]);
    assert_eq!(ssdlite.len(), 3234);
    close(nth(&ssdlite, 7), [1.5 / 20.0, 0.5 / 20.0, (0.2f32 * 0.35).sqrt(), (0.2f32 * 0.35).sqrt()]);
    close(nth(&ssdlite, 3233), [0.5, 0.5, 0.95 / 3f32.sqrt(), 1.0]);

    assert_eq!(priors::ssd_mobilenet([300, 300]).len(), 1917);
    let ssd = priors::ssd_mobilenet([512, 512]);
    assert_eq!(ssd.len(), 5118);
    close(nth(&ssd, 0), [1.0 / 64.0, 1.0 / 64.0, 0.1, 0.1]);
    close(nth(&ssd, 2), [1.0 / 64.0, 1.0 / 64.0, 0.2 / r, 0.2 * r]);
    close(
        nth(&ssd, 32 * 32 * 3 + 1),
        [1.0 / 32.0, 1.0 / 32.0, (0.35f32 * 0.5).sqrt(), (0.35f32 * 0.5).sqrt()],
    );

    let yolact = priors::yolact([550, 550]);
    assert_eq!(yolact.len(), 19_248);
    close(nth(&yolact, 2), [0.5 / 69.0, 0.5 / 69.0, 24.0 * r / 550.0, 24.0 * r / 550.0]);
    close(nth(&yolact, 19_245), [0.9, 0.9, 384.0 / 550.0, 384.0 / 550.0]);
}

#[test]
fn heads_are_told_from_shapes() {
    let name = |shapes: &[&[usize]], size| {
        let shapes: Vec<Vec<usize>> = shapes.iter().map(|s| s.to_vec()).collect();
        of_shapes(&shapes, size).map(|(row, head)| (row.name, head.contents(&shapes, size).unwrap()))
    };
    let plain = |classes| Contents { classes, masks: None };
    assert_eq!(name(&[&[4, 8732], &[81, 8732]], [300; 2]), Some(("ssd300", plain(80))));
    assert_eq!(name(&[&[8732, 4], &[8732, 21]], [300; 2]), Some(("ssd300", plain(20))));
    assert_eq!(name(&[&[3234, 4], &[3234, 91]], [320; 2]), Some(("ssdlite", plain(90))));
    assert_eq!(name(&[&[1917, 4], &[1917, 91]], [300; 2]), Some(("ssd_mobilenet", plain(90))));
    assert_eq!(name(&[&[5118, 4], &[5118, 3]], [512; 2]), Some(("ssd_mobilenet", plain(2))));
    assert_eq!(name(&[&[5118, 4], &[5117, 3]], [512; 2]), None);
    assert_eq!(name(&[&[5118, 5], &[5118, 3]], [512; 2]), None);
    let masks = |count, h, w| Some(Prototypes { count, h, w });
    let yolact: [&[usize]; 4] = [&[19_248, 4], &[19_248, 81], &[19_248, 32], &[32, 138, 138]];
    assert_eq!(
        name(&yolact, [550; 2]),
        Some(("yolact", Contents { classes: 80, masks: masks(32, 138, 138) }))
    );
    let segment: [&[usize]; 2] = [&[116, 8400], &[32, 160, 160]];
    assert_eq!(
        name(&segment, [640; 2]),
        Some(("yolov8", Contents { classes: 80, masks: masks(32, 160, 160) }))
    );
    // Coefficients without as many prototypes.
    assert_eq!(name(&[&yolact[..3], &[&[31, 138, 138][..]]].concat(), [550; 2]), None);
    for row in HEADS {
        assert_eq!(find(row.name).unwrap().about, row.about);
    }
}

/// Two cells beside each other, three boxes in each.
fn small(order: Order, y_first: bool, scores: Scores) -> Priors {
    let sizes = vec![[0.2, 0.4], [0.4, 0.2], [0.3, 0.3]];
    let level = Level { cells: [1, 2], step: [0.5, 1.0], sizes };
    Priors { levels: vec![level], order, y_first, variances: [0.1, 0.2], scores }
}

#[test]
fn offsets_from_priors() {
    // The second box of the second cell, in both orders.
    for (order, at) in [(Order::Cells, 4), (Order::Sizes, 3)] {
        close(nth(&small(order, false, Scores::Softmax), at), [0.75, 0.5, 0.4, 0.2]);
    }
    // In an image of 100 x 200 it is 80 x 20 around (150, 50).
    let offsets = [1.0, -2.0, 5.0 * 2f32.ln(), 0.0];
    let want = [150.0 + 8.0 - 80.0, 50.0 - 4.0 - 10.0, 150.0 + 8.0 + 80.0, 50.0 - 4.0 + 10.0];
    let head = Head::Priors(small(Order::Cells, false, Scores::Softmax));
    let mut table = vec![0.0; 6 * 4];
    table[4 * 4..5 * 4].copy_from_slice(&offsets);
    // Background, then two classes; that box is one half of the second.
    let mut scores = [9.0, 0.0, 0.0].repeat(6);
    scores[4 * 3..5 * 3].copy_from_slice(&[0.0, -20.0, 0.0]);
    let outputs = [Output { dims: &[6, 4], values: &table }, Output { dims: &[6, 3], values: &scores }];
    assert_eq!(head.classes(&[vec![6, 4], vec![6, 3]], [100, 200]), Some(2));
    let found = head.candidates(&outputs, [100, 200], 0.4);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].place, found[0].detection.class), (4, 1));
    assert!((found[0].detection.score - 0.5).abs() < 1e-6);
    close(found[0].detection.corners, want);

    // The same, transposed, with y first, as sigmoids; two classes of one box are two objects.
    let head = Head::Priors(small(Order::Cells, true, Scores::Sigmoid));
    let turned = [offsets[1], offsets[0], offsets[3], offsets[2]];
    let table: Vec<f32> = turned.iter().flat_map(|&v| [0.0, 0.0, 0.0, 0.0, v, 0.0]).collect();
    let row = |v: f32| [-9.0, -9.0, -9.0, -9.0, v, -9.0];
    let scores = [row(0.0), row(0.0), row(3f32.ln())].concat();
    let outputs = [Output { dims: &[4, 6], values: &table }, Output { dims: &[3, 6], values: &scores }];
    let found = head.decode(&outputs, [100, 200], 0.4);
    assert_eq!(found.iter().map(|d| d.class).collect::<Vec<_>>(), [0, 1]);
    assert!((found[0].score - 0.5).abs() < 1e-6 && (found[1].score - 0.75).abs() < 1e-6);
    close(found[1].corners, want);

    // What is no number is nothing.
    let nothing = [f32::NAN; 24];
    let outputs =
        [Output { dims: &[6, 4], values: &nothing }, Output { dims: &[6, 3], values: &nothing[..18] }];
    assert_eq!(head.decode(&outputs, [100, 200], 0.4), []);
}
