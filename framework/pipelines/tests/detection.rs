//! Letterbox, heads and suppression against numbers worked out by hand or by other means.

use lacuna_data::RgbImage8;
use lacuna_pipelines::boxes::{Detection, iou, nms};
use lacuna_pipelines::draw::{draw, save_png};
use lacuna_pipelines::heads::{Head, Result as Output};
use lacuna_pipelines::letterbox::{GREY, Placement, letterbox};

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
    let kind = |shape: &[usize]| Head::of_shapes(&[shape.to_vec()], [64, 64]);
    let strides = vec![8, 16, 32];
    assert_eq!(kind(&[84, 7]), Some(Head::Grid { strides: strides.clone() }));
    assert_eq!(kind(&[252, 7]), Some(Head::Rows));
    assert_eq!(kind(&[6, 84]), Some(Head::Columns));
    assert_eq!(kind(&[3, 4]), None);
    assert_eq!(Head::of_shapes(&[vec![84, 7], vec![1, 1]], [64, 64]), None);

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
