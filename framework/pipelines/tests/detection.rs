//! Letterbox, heads and suppression against numbers worked out by hand or by other means.

use lacuna_data::RgbImage8;
use lacuna_ir::Graph;
use lacuna_pipelines::boxes::{Detection, Suppression, iou, nms, suppress};
use lacuna_pipelines::classes::names;
use lacuna_pipelines::draw::{draw, save_png};
use lacuna_pipelines::head_table::of_shapes;
use lacuna_pipelines::heads::{Head, Result as Output};
use lacuna_pipelines::letterbox::{Frame, GREY, Placement, letterbox};

fn picture(h: usize, w: usize) -> RgbImage8 {
    RgbImage8 { h, w, pixels: vec![7; h * w * 3] }
}

fn close(have: [f32; 4], want: [f32; 4]) {
    let off = have.iter().zip(&want).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(off < 1e-3, "{have:?}, not {want:?}");
}

#[test]
fn a_wide_picture_lies_in_the_middle_and_boxes_come_back() {
    let (boxed, placed) = letterbox(&picture(50, 100), 64, 64, Placement::Centre).unwrap();
    let pixel = |y: usize, x: usize| boxed.pixels[(y * 64 + x) * 3];
    assert_eq!([pixel(15, 0), pixel(16, 0), pixel(47, 63), pixel(48, 63)], [GREY, 7, 7, GREY]);
    // A box of the picture, into the rectangle and back.
    close(
        placed.undo([0.64 * 10.0, 16.0 + 0.64 * 5.0, 0.64 * 60.0, 16.0 + 0.64 * 40.0]),
        [10.0, 5.0, 60.0, 40.0],
    );
    // What reaches beyond the picture is cut.
    close(placed.undo([-5.0, 0.0, 70.0, 64.0]), [0.0, 0.0, 100.0, 50.0]);
    let (boxed, placed) = letterbox(&picture(100, 50), 64, 64, Placement::TopLeft).unwrap();
    assert_eq!([boxed.pixels[0], boxed.pixels[31 * 3], boxed.pixels[32 * 3]], [7, 7, GREY]);
    assert_eq!(placed.origin, [0.0, 0.0]);
    assert!(letterbox(&picture(0, 5), 64, 64, Placement::Centre).is_err());
    // Stretched, nothing is around it; and a box comes back with the shape that it had.
    let stretched = Frame { placement: Placement::Stretch, fill: 0 };
    let (boxed, placed) = letterbox(&picture(50, 100), 64, 64, stretched).unwrap();
    assert!(boxed.pixels.iter().all(|&p| p == 7));
    close(placed.undo([32.0, 16.0, 64.0, 32.0]), [50.0, 12.5, 100.0, 25.0]);
    assert_eq!(placed.place([50.0, 25.0]), [32.0, 32.0]);
}

#[test]
fn overlap_and_suppression() {
    assert_eq!(iou(&[0.0, 0.0, 2.0, 2.0], &[1.0, 1.0, 3.0, 3.0]), 1.0 / 7.0);
    assert_eq!(iou(&[0.0; 4], &[0.0; 4]), 0.0);
    assert_eq!(iou(&[2.0, 2.0, 0.0, 0.0], &[0.0, 0.0, 2.0, 2.0]), 0.0);
    let at = |x: f32, class: usize, score: f32| Detection { corners: [x, 0.0, x + 10.0, 10.0], class, score };
    let found = vec![at(1.0, 0, 0.5), at(0.0, 0, 0.9), at(0.0, 1, 0.3), at(20.0, 0, 0.6)];
    let kept = nms(found.clone(), 0.5, 10);
    assert_eq!(kept, [at(0.0, 0, 0.9), at(20.0, 0, 0.6), at(0.0, 1, 0.3)]);
    assert_eq!(nms(found, 0.5, 1), [at(0.0, 0, 0.9)]);

    // A chain: the second overlaps the first, the third the second only. Hidden boxes hide others in fast suppression.
    let chain = [at(0.0, 0, 0.9), at(4.0, 0, 0.8), at(8.0, 0, 0.7)];
    assert!(
        iou(&chain[0].corners, &chain[1].corners) > 0.4 && iou(&chain[0].corners, &chain[2].corners) < 0.4
    );
    assert_eq!(suppress(&chain, Suppression::Greedy, 0.4, 10), [0, 2]);
    assert_eq!(suppress(&chain, Suppression::Fast, 0.4, 10), [0]);
}

/// Against the matrix of all overlaps, as the paper computes it.
#[test]
fn fast_suppression_is_that_of_the_matrix() {
    let mut state = 7u32;
    let mut next = |most: f32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 * most
    };
    let mut any = || {
        let (x, y) = (next(40.0), next(40.0));
        let corners = [x, y, x + 5.0 + next(20.0), y + 5.0 + next(20.0)];
        Detection { corners, class: next(3.0) as usize, score: next(1.0) }
    };
    let found: Vec<Detection> = (0..60).map(|_| any()).collect();
    let worst = |i: &usize| {
        let better = |d: &&Detection| d.class == found[*i].class && d.score > found[*i].score;
        found.iter().filter(better).map(|d| iou(&d.corners, &found[*i].corners)).fold(0.0, f32::max)
    };
    let mut want: Vec<usize> = (0..60).filter(|i| worst(i) <= 0.3).collect();
    want.sort_by(|&a, &b| found[b].score.total_cmp(&found[a].score));
    assert_eq!(suppress(&found, Suppression::Fast, 0.3, 100), want);
    assert!(want.len() < suppress(&found, Suppression::Greedy, 0.3, 100).len());
}

/// The inverse of a sigmoid.
fn logit(p: f32) -> f32 {
    (p / (1.0 - p)).ln()
}

#[test]
fn maps_with_anchors() {
    let head = Head::Anchors { strides: vec![8], anchors: vec![vec![[10.0, 20.0], [30.0, 5.0]]] };
    // Two anchors, two classes, cells of 2 x 3; one object in the second anchor at row 1, column 2.
    let shape = vec![2 * 7, 2, 3];
    assert_eq!(head.classes(std::slice::from_ref(&shape), [16, 24]), Some(2));
    assert_eq!(head.classes(std::slice::from_ref(&shape), [32, 24]), None);
    let mut values = vec![-20.0; 14 * 6];
    let mut put = |channel: usize, x: f32| values[(7 + channel) * 6 + 5] = x;
    // Half a cell in, twice half of the anchor squared.
    let object = [(0, 0.0), (1, logit(0.75)), (2, 0.0), (3, logit(0.25)), (4, logit(0.8)), (6, logit(0.5))];
    object.into_iter().for_each(|(channel, x)| put(channel, x));
    let found = head.decode(&[Output { dims: &shape, values: &values }], [16, 24], 0.3);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].class, 1);
    assert!((found[0].score - 0.4).abs() < 1e-6);
    let (x, y, w, h) = ((0.5 + 2.0) * 8.0, (1.0 + 1.0) * 8.0, 30.0, 1.25);
    close(found[0].corners, [x - w / 2.0, y - h / 2.0, x + w / 2.0, y + h / 2.0]);
    assert!(head.decode(&[Output { dims: &shape, values: &values }], [16, 24], 0.5).is_empty());
}

#[test]
fn maps_with_distributions() {
    let head = Head::Dfl { strides: vec![4], bins: 3 };
    let shape = vec![4 * 3 + 1, 1, 2];
    assert_eq!(head.classes(std::slice::from_ref(&shape), [4, 8]), Some(1));
    let mut values = vec![-20.0; 13 * 2];
    let mut put = |channel: usize, x: f32| values[channel * 2 + 1] = x;
    // Left: certainly 1; top: 0 and 1 alike; right: certainly 2; bottom: thirds.
    let object = [(1, 50.0), (3, 5.0), (4, 5.0), (8, 50.0), (9, 1.0), (10, 1.0), (11, 1.0), (12, logit(0.9))];
    object.into_iter().for_each(|(channel, x)| put(channel, x));
    let found = head.decode(&[Output { dims: &shape, values: &values }], [4, 8], 0.5);
    assert_eq!(found.len(), 1);
    close(found[0].corners, [4.0 * (1.5 - 1.0), 0.0, 4.0 * (1.5 + 2.0), 4.0 * (0.5 + 1.0)]);
}

#[test]
fn tables_of_others() {
    // 64 x 64: 64 + 16 + 4 cells.
    let kind = |shape: &[usize]| of_shapes(&[shape.to_vec()], [64, 64]).map(|found| found.1);
    let strides = vec![8, 16, 32];
    assert_eq!(kind(&[84, 7]), Some(Head::Grid { strides: strides.clone() }));
    assert_eq!(kind(&[252, 7]), Some(Head::Rows));
    assert_eq!(kind(&[6, 84]), Some(Head::Columns));
    assert_eq!(kind(&[3, 4]), None);
    assert!(of_shapes(&[vec![84, 7], vec![1, 1]], [64, 64]).is_none());

    let found = Head::Rows.decode(
        &[Output { dims: &[1, 7], values: &[10.0, 20.0, 4.0, 6.0, 0.5, 0.2, 0.9] }],
        [64, 64],
        0.4,
    );
    assert_eq!(found, [Detection { corners: [8.0, 17.0, 12.0, 23.0], class: 1, score: 0.45 }]);
    let found = Head::Columns.decode(
        &[Output { dims: &[5, 2], values: &[10.0, 1.0, 20.0, 1.0, 4.0, 1.0, 6.0, 1.0, 0.7, 0.1] }],
        [64, 64],
        0.4,
    );
    assert_eq!(found, [Detection { corners: [8.0, 17.0, 12.0, 23.0], class: 0, score: 0.7 }]);

    // The cell of stride 16 at row 1, column 2 is the 64 + 4 + 2nd.
    let mut values = vec![0.0; 84 * 6];
    values[70 * 6..71 * 6].copy_from_slice(&[0.5, 0.25, 0.0, 2f32.ln(), 1.0, 0.8]);
    let head = Head::Grid { strides };
    assert_eq!(head.classes(&[vec![84, 6]], [64, 64]), Some(1));
    let found = head.decode(&[Output { dims: &[84, 6], values: &values }], [64, 64], 0.5);
    assert_eq!(found.len(), 1);
    close(found[0].corners, [40.0 - 8.0, 20.0 - 16.0, 40.0 + 8.0, 20.0 + 16.0]);
}

#[test]
fn boxes_are_drawn_wherever_they_lie() {
    let mut drawn = picture(60, 80);
    let classes = vec!["cat".to_owned()];
    let at = |corners, class| Detection { corners, class, score: 0.5 };
    draw(&mut drawn, &[at([10.0, 20.0, 50.0, 50.0], 0), at([-9e9, -5.0, 9e9, f32::NAN], 3)], &classes);
    let pixel = |y: usize, x: usize| drawn.pixels[(y * 80 + x) * 3..][..3].to_vec();
    assert_eq!(pixel(20, 30), [0xc0, 0x39, 0x2b]);
    assert_eq!(pixel(35, 30), [7, 7, 7]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("drawn.png");
    save_png(&drawn, &path).unwrap();
    assert_eq!(lacuna_data::images::load_image(&path).unwrap(), drawn);
    assert!(save_png(&drawn, &dir.path().join("no/such/folder.png")).is_err());
}

#[test]
fn names_of_classes() {
    let with = |key: &str, text: &str, classes: usize| {
        let mut graph = Graph::new("g");
        graph.metadata.push((key.into(), text.into()));
        names(&graph, classes)
    };
    // As Ultralytics writes them; what makes no sense, or has another number, says nothing.
    let three = r#"{0: 'a', 1: "b's", 2:'c, d: e'}"#;
    assert_eq!(with("names", three, 3).unwrap(), ["a", "b's", "c, d: e"]);
    for text in
        ["", "{}", "{0: 'a'", "{1: 'a'}", "{0: a}", "{0: 'a}", "{0}", "{0: 'a', 0: 'b'}", "{0: 'ä' 2}", three]
    {
        assert_eq!(with("names", text, 1).unwrap(), ["0"], "{text}");
    }
    assert_eq!(with("lacuna.classes", r#"["one"]"#, 1).unwrap(), ["one"]);
    assert!(with("lacuna.classes", r#"["one"]"#, 2).unwrap_err().contains("1 names for 2 classes"));
    assert!(with("lacuna.classes", "one", 1).is_err());
    // COCO's, and its numbers, of which some name nothing.
    let ninety = with("", "", 90).unwrap();
    let some = [0, 10, 11, 89].map(|i: usize| ninety[i].as_str());
    assert_eq!(some, ["person", "fire hydrant", "unused 12", "toothbrush"]);
    assert_eq!(with("", "", 80).unwrap()[79], "toothbrush");
}

#[test]
fn labels_do_not_cover_each_other() {
    let drawn = |found: &[Detection]| {
        let mut drawn = picture(80, 200);
        draw(&mut drawn, found, &["cat".to_owned(), "dog".to_owned()]);
        drawn
    };
    let at = |class: usize| Detection { corners: [20.0, 20.0, 150.0, 70.0], class, score: 0.5 };
    let (both, first) = (drawn(&[at(0), at(1)]), drawn(&[at(0)]));
    let pixel = |p: &RgbImage8, y: usize, x: usize| p.pixels[(y * 200 + x) * 3..][..3].to_vec();
    // The better one's label stays as it is, above the box; the other's is below that.
    let label = |p: &RgbImage8| {
        (11..20).flat_map(|y| (20..60).map(move |x| (y, x))).map(|(y, x)| pixel(p, y, x)).collect::<Vec<_>>()
    };
    assert_eq!(label(&both), label(&first));
    assert_eq!(pixel(&both, 21 + 2, 20 + 30), [0x21, 0x6c, 0xb0]);
}
