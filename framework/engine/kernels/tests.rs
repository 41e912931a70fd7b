//! Every row of [`CONV_KERNELS`] against the reference functions of `lacuna_ir`, bit for bit where it is integer.
//!
//! Buffers lie against pages that cannot be touched, so that a read or write beyond the contract ends the test.
//! Outputs start as noise and are compared as a whole: what a tile does not own must stay as it was.

use super::*;
use lacuna_ir::op::{Attr, ClipAttr, ConvAttr, FusedConvAttr, OpKind, QConvAttr, QGemmAttr, Window};
use lacuna_ir::{Tensor, op};
use std::mem::size_of;

/// xorshift64*: numbers that are the same on every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    fn below(&mut self, n: u32) -> u32 {
        (self.next() % n as u64) as u32
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u32) as usize]
    }

    /// In [-1, 1).
    fn float(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 52) as f32 - 1.0
    }
}

/// `len` elements between two pages without access, `before` and `after` readable bytes around them. Against the
/// page behind if `at_end`, otherwise against the page before.
struct Guarded<T> {
    start: *mut T,
    len: usize,
    map: (*mut u8, usize),
}

impl<T> Guarded<T> {
    fn new(len: usize, slack: (usize, usize), at_end: bool, mut noise: impl FnMut() -> u8) -> Guarded<T> {
        const PAGE: usize = 4096;
        let bytes = slack.0 + len * size_of::<T>() + slack.1;
        let inner = bytes.next_multiple_of(PAGE);
        // SAFETY: an anonymous mapping of our own; the two pages we close are its first and last.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            let map: *mut u8 = libc::mmap(std::ptr::null_mut(), inner + 2 * PAGE, prot, flags, -1, 0).cast();
            assert_ne!(map.cast(), libc::MAP_FAILED);
            assert_eq!(libc::mprotect(map.cast(), PAGE, libc::PROT_NONE), 0);
            assert_eq!(libc::mprotect(map.add(PAGE + inner).cast(), PAGE, libc::PROT_NONE), 0);
            (0..inner).for_each(|i| map.add(PAGE + i).write(noise()));
            let start =
                if at_end { map.add(PAGE + inner - bytes + slack.0) } else { map.add(PAGE + slack.0) };
            Guarded { start: start.cast(), len, map: (map, inner + 2 * PAGE) }
        }
    }

    fn slice(&mut self) -> &mut [T] {
        // SAFETY: `len` elements of the mapping; any bytes are a u8 or an f32.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, which nothing refers to any more.
        unsafe { libc::munmap(self.map.0.cast(), self.map.1) };
    }
}

#[derive(Clone, Debug)]
struct Shape {
    n: u32,
    h: u32,
    w: u32,
    c: u32,
    oc: u32,
    group: u32,
    window: Window,
}

fn shape(n: u32, [h, w]: [u32; 2], c: u32, oc: u32, kernel: [u32; 2], stride: [u32; 2], pad: u32) -> Shape {
    let window = Window { kernel, stride, dilation: [1, 1], pads: [pad; 4] };
    Shape { n, h, w, c, oc, group: 1, window }
}

fn grouped(group: u32, s: Shape) -> Shape {
    Shape { group, ..s }
}

fn dilated(dilation: [u32; 2], mut s: Shape) -> Shape {
    s.window.dilation = dilation;
    s
}

/// Shapes that networks have, and shapes that sit on every edge of the kernels' blocks.
fn shapes() -> Vec<Shape> {
    let mut all = vec![
        shape(1, [1, 1], 1, 1, [1, 1], [1, 1], 0),
        shape(1, [1, 37], 64, 10, [1, 1], [1, 1], 0),
        shape(1, [1, 5], 129, 77, [1, 1], [1, 1], 0),
        shape(1, [1, 130], 31, 64, [1, 1], [1, 1], 0),
        shape(2, [7, 7], 96, 80, [1, 1], [1, 1], 0),
        shape(2, [7, 7], 32, 48, [3, 3], [1, 1], 1),
        shape(3, [5, 4], 17, 33, [3, 3], [1, 1], 1),
        shape(1, [14, 14], 20, 16, [3, 3], [2, 2], 1),
        shape(1, [28, 28], 1, 16, [3, 3], [1, 1], 1),
        // More than kernels take in one go: they cut images and rows.
        shape(18, [7, 7], 512, 16, [3, 3], [1, 1], 1),
        shape(1, [1, 2200], 256, 16, [1, 1], [1, 1], 0),
        shape(1, [17, 19], 3, 24, [7, 7], [2, 2], 3),
        shape(2, [8, 8], 64, 128, [1, 1], [2, 2], 0),
        shape(1, [6, 33], 5, 7, [1, 3], [1, 2], 1),
        shape(1, [9, 6], 13, 65, [5, 2], [2, 1], 2),
        dilated([2, 2], shape(1, [11, 11], 16, 20, [3, 3], [1, 1], 2)),
        dilated([1, 3], shape(2, [6, 12], 9, 18, [2, 3], [1, 1], 1)),
        // More than one tile of a window's elements, and than the channels whose sums are kept at a time.
        shape(1, [5, 9], 130, 200, [3, 3], [1, 1], 1),
        shape(2, [1, 70], 600, 300, [1, 1], [1, 1], 0),
        // Strides and dilations that nothing uses may be anything.
        dilated([u32::MAX; 2], shape(2, [1, 1], 20, 70, [1, 1], [u32::MAX; 2], 0)),
        grouped(2, shape(1, [6, 6], 8, 12, [3, 3], [1, 1], 1)),
        grouped(3, shape(2, [5, 5], 9, 9, [1, 1], [1, 1], 0)),
        grouped(40, shape(1, [9, 9], 40, 40, [3, 3], [1, 1], 1)),
        grouped(17, shape(2, [8, 5], 17, 17, [5, 5], [2, 2], 2)),
        grouped(5, shape(1, [4, 4], 5, 10, [3, 3], [1, 1], 1)),
    ];
    all.extend(depthwise_shapes());
    // One row of every length, and pairs of rows of every length.
    all.extend((1..=18).map(|w| shape(1, [1, w], 40, 20, [1, 1], [1, 1], 0)));
    all.extend((1..=9).map(|w| shape(1, [3, w], 12, 16, [3, 3], [1, 1], 1)));
    let mut noise = Noise(0x1234_5678_9abc_def1);
    while all.len() < 240 {
        let group = noise.pick(&[1, 1, 1, 1, 2, 4]);
        let window = Window {
            kernel: [1 + noise.below(4), 1 + noise.below(4)],
            stride: [1 + noise.below(2), 1 + noise.below(3)],
            dilation: [1 + noise.below(2), 1 + noise.below(2)],
            pads: [noise.below(3), noise.below(3), noise.below(3), noise.below(3)],
        };
        let (n, c, oc) = (1 + noise.below(2), group * (1 + noise.below(40)), group * (1 + noise.below(40)));
        let s = Shape { n, h: 1 + noise.below(12), w: 1 + noise.below(20), c, oc, group, window };
        let fits = |size: u32, d: usize| {
            size + window.pads[d] + window.pads[d + 2] > (window.kernel[d] - 1) * window.dilation[d]
        };
        if fits(s.h, 0) && fits(s.w, 1) {
            all.push(s);
        }
    }
    all
}

/// One channel a group: windows and strides that networks have and that sit on the edges of strips and scratch, and
/// channels that fill a vector several times, once, in part, or share it with the next pixels.
fn depthwise_shapes() -> Vec<Shape> {
    let depthwise = |hw, c, kernel, stride, pad| grouped(c, shape(1, hw, c, c, kernel, stride, pad));
    let mut all = vec![
        grouped(64, shape(2, [7, 7], 64, 64, [3, 3], [1, 1], 1)),
        depthwise([5, 70], 32, [3, 3], [1, 1], 1),
        depthwise([6, 67], 64, [3, 3], [1, 1], 1),
        depthwise([9, 41], 96, [5, 5], [1, 1], 2),
        depthwise([9, 75], 80, [3, 3], [2, 2], 1),
        depthwise([12, 70], 144, [5, 5], [2, 2], 2),
        depthwise([8, 8], 128, [7, 7], [1, 1], 3),
        depthwise([3, 9], 16, [1, 3], [1, 1], 1),
        depthwise([9, 3], 48, [8, 1], [1, 1], 0),
        depthwise([9, 20], 65, [4, 2], [1, 3], 1),
        depthwise([9, 5], 64, [9, 3], [1, 1], 1),
        dilated([2, 2], depthwise([8, 9], 64, [3, 3], [1, 1], 2)),
        dilated([1, 7], depthwise([6, 20], 32, [3, 3], [1, 1], 2)),
        dilated([1, 9], depthwise([6, 24], 32, [3, 3], [1, 1], 2)),
        dilated([u32::MAX; 2], depthwise([1, 1], 40, [1, 1], [u32::MAX; 2], 0)),
    ];
    for (i, c) in [2, 3, 4, 8, 16, 24, 32, 63, 64, 65, 200].into_iter().enumerate() {
        let (k, stride) = ([3, 5][i % 2], [1, 1, 2][i % 3]);
        all.push(depthwise([6, 11], c, [k; 2], [stride; 2], k / 2));
    }
    all
}

/// A shape with buffers around it: strides with gaps, borders wider than the padding.
struct Layout {
    geom: ConvGeom,
    /// Element of x where pixel (0, 0) of image 0 lies, without its border.
    inner: usize,
    x_len: usize,
    y_len: usize,
    r_len: usize,
}

fn layout(s: &Shape, noise: &mut Noise) -> Layout {
    let w = &s.window;
    let out = |size: u32, d: usize| {
        (size + w.pads[d] + w.pads[d + 2] - (w.kernel[d] - 1) * w.dilation[d] - 1) / w.stride[d] + 1
    };
    let (oh, ow) = (out(s.h, 0), out(s.w, 1));
    let gap = |noise: &mut Noise| noise.pick(&[0, 0, 0, 3, 16]);
    let wider = noise.pick(&[0, 0, 1]);
    let x_pixel = noise.pick(&[s.c, s.c, s.c + 1, s.c.next_multiple_of(16)]);
    let x_row = (s.w + w.pads[1] + w.pads[3] + 2 * wider) * x_pixel + gap(noise);
    let x_image = (s.h + w.pads[0] + w.pads[2] + 2 * wider) * x_row + gap(noise);
    let [y_pixel, r_pixel] = [0; 2].map(|_| noise.pick(&[s.oc, s.oc, s.oc + 5, s.oc.next_multiple_of(16)]));
    let [y_row, r_row] = [y_pixel, r_pixel].map(|p| ow * p + gap(noise));
    let [y_image, r_image] = [y_row, r_row].map(|r| oh * r + gap(noise));
    let [y_origin, r_origin] = [0; 2].map(|_| gap(noise));
    let [y_at, r_at] = [[y_origin, y_image, y_row, y_pixel], [r_origin, r_image, r_row, r_pixel]];
    // Some residuals lie as y does.
    let r_at = noise.pick(&[y_at, r_at]);
    let x_origin = wider * (x_row + x_pixel);
    let geom = ConvGeom {
        rows: s.n * oh,
        oh,
        ow,
        oc: s.oc,
        c: s.c,
        group: s.group,
        kh: w.kernel[0],
        kw: w.kernel[1],
        sh: w.stride[0],
        sw: w.stride[1],
        dh: w.dilation[0],
        dw: w.dilation[1],
        x_origin,
        x_image,
        x_row,
        x_pixel,
        y_origin,
        y_image,
        y_row,
        y_pixel,
        r_origin: r_at[0],
        r_image: r_at[1],
        r_row: r_at[2],
        r_pixel: r_at[3],
    };
    // y and the residual end with their last channel: not even the gap behind it is there.
    let end = |[origin, image, row, pixel]: [u32; 4]| {
        (origin + (s.n - 1) * image + (oh - 1) * row + (ow - 1) * pixel + s.oc) as usize
    };
    Layout {
        inner: (x_origin + w.pads[0] * x_row + w.pads[1] * x_pixel) as usize,
        x_len: (s.n * x_image) as usize,
        y_len: end(y_at),
        r_len: end(r_at),
        geom,
    }
}

/// Visits (element of a dense NHWC tensor, element of its buffer) for all channels of all pixels.
fn for_each_element(
    dims: [u32; 4],
    [origin, image, row, pixel]: [usize; 4],
    mut f: impl FnMut(usize, usize),
) {
    let [n, h, w, c] = dims.map(|d| d as usize);
    let pixels = (0..n * h * w).map(|i| (i / (h * w), i / w % h, i % w));
    for (i, (n, y, x)) in pixels.enumerate() {
        let at = origin + n * image + y * row + x * pixel;
        (0..c).for_each(|k| f(i * c + k, at + k));
    }
}

/// The input as the engine holds it: noise between the pixels, `zero` in the border, `x` inside.
fn fill_input<T: Copy>(s: &Shape, l: &Layout, buffer: &mut [T], zero: T, x: &[T]) {
    let g = &l.geom;
    let w = &s.window;
    let strides = [g.x_image as usize, g.x_row as usize, g.x_pixel as usize];
    let padded = [s.n, s.h + w.pads[0] + w.pads[2], s.w + w.pads[1] + w.pads[3], s.c];
    let at = |origin: usize| [origin, strides[0], strides[1], strides[2]];
    for_each_element(padded, at(g.x_origin as usize), |_, at| buffer[at] = zero);
    for_each_element([s.n, s.h, s.w, s.c], at(l.inner), |i, at| buffer[at] = x[i]);
}

/// Cuts the output of a shape into tiles that together cover it once.
fn tiles(g: &ConvGeom, granule: u32, noise: &mut Noise) -> Vec<Tile> {
    let cut = |noise: &mut Noise, end: u32, granule: u32| {
        let at = noise.below(end + 1) / granule * granule;
        [0..at, at..end].into_iter().filter(|r| !r.is_empty()).collect::<Vec<_>>()
    };
    let mut all = Vec::new();
    for rows in cut(noise, g.rows, 1) {
        for cols in cut(noise, g.ow, 1) {
            for ocs in cut(noise, g.oc, granule) {
                all.push(Tile { rows: rows.clone(), cols: cols.clone(), ocs });
            }
        }
    }
    all
}

/// Runs all tiles of one layer one by one and compares the whole output after each; then once more over the residual,
/// where it lies as y does.
fn check_tiles<T: Copy + PartialEq + std::fmt::Debug>(
    kernel: &ConvKernel,
    what: &str,
    (l, e): (&Layout, &QEpilogue),
    packed: &[u8],
    (x, r): (*const u8, *const u8),
    noise: &mut Noise,
    same: impl Fn(usize, T, T) -> bool,
    want: &[T],
) {
    let g = &l.geom;
    let r_lies_so =
        [g.y_origin, g.y_image, g.y_row, g.y_pixel] == [g.r_origin, g.r_image, g.r_row, g.r_pixel];
    let may_be_over = e.has_residual && r_lies_so && kernel.dtype != KernelType::Int8;
    for (whole, over) in [(true, false), (false, false), (true, true), (false, true)] {
        if over && !may_be_over {
            continue;
        }
        let all = match whole {
            true => vec![Tile { rows: 0..g.rows, cols: 0..g.ow, ocs: 0..g.oc }],
            false => tiles(g, kernel.oc_granule, noise),
        };
        let slack = if over { (READ_BEFORE, READ_AFTER) } else { (0, 0) };
        let mut y = Guarded::<T>::new(l.y_len, slack, whole, || noise.next() as u8);
        let mut r = r;
        if over {
            // SAFETY: a residual that lies as y does is as long, and of the same type.
            y.slice().copy_from_slice(unsafe { std::slice::from_raw_parts(r.cast(), l.y_len) });
            r = y.start.cast_const().cast();
        }
        let mut owned = vec![None; l.y_len];
        for tile in &all {
            let before = y.slice().to_vec();
            let (y_at, tile_at) = (y.start.cast(), tile.clone());
            let operands = Operands { geom: *g, epilogue: *e, packed, x, r, y: y_at, tile: tile_at };
            // SAFETY: the processor has the row's instructions, the buffers hold the layout.
            unsafe { (kernel.run)(&operands) };
            for row in tile.rows.clone() {
                for col in tile.cols.clone() {
                    for o in tile.ocs.clone() {
                        let i = (row * g.ow + col) * g.oc + o;
                        owned[g.y_at(row, col) + o as usize] = Some(i as usize);
                    }
                }
            }
            let bytes = |v: &T| {
                // SAFETY: T is u8 or f32.
                unsafe { std::slice::from_raw_parts((v as *const T).cast::<u8>(), size_of::<T>()) }.to_vec()
            };
            for (at, &got) in y.slice().iter().enumerate() {
                match owned[at] {
                    Some(i) => assert!(
                        same(i, got, want[i]),
                        "{} {what} {tile:?} of {g:?} {e:?}: output {i} is {got:?}, not {:?}",
                        kernel.name,
                        want[i]
                    ),
                    None => assert_eq!(
                        bytes(&got),
                        bytes(&before[at]),
                        "{} {what} {tile:?} of {g:?}: wrote element {at}, which is not the tile's",
                        kernel.name
                    ),
                }
            }
        }
    }
}

/// Rows this processor can run; the others are printed and counted.
fn runnable(dtypes: &[KernelType]) -> Vec<&'static ConvKernel> {
    let (run, skipped): (Vec<_>, Vec<_>) =
        CONV_KERNELS.iter().filter(|k| dtypes.contains(&k.dtype)).partition(|k| k.is_available());
    for k in &skipped {
        println!("skipped {}: this processor lacks what it needs", k.name);
    }
    println!("{} rows run, {} skipped", run.len(), skipped.len());
    run
}

/// Types whose tensors are f32.
const FLOATS: &[KernelType] = &[KernelType::F32, KernelType::Bf16];

const SPARSITIES: [f32; 5] = [0.0, 0.5, 0.8, 0.95, 1.0];

fn random_weights(len: usize, sparsity: f32, extreme: bool, noise: &mut Noise) -> Vec<i8> {
    (0..len)
        .map(|_| {
            let v = if extreme { noise.pick(&[-128, 127]) } else { noise.next() as i8 };
            if (noise.float() + 1.0) / 2.0 < sparsity { 0 } else { v }
        })
        .collect()
}

#[test]
fn integer_rows_equal_the_reference_bit_for_bit() {
    let kernels = runnable(&[KernelType::Int8]);
    let mut noise = Noise(0x0dd_c0ffee);
    for (case, s) in shapes().iter().enumerate() {
        for sparsity in SPARSITIES {
            check_integer_layer(&kernels, s, sparsity, case % 4 == 3, &mut noise);
        }
    }
}

fn check_integer_layer(kernels: &[&ConvKernel], s: &Shape, sparsity: f32, extreme: bool, noise: &mut Noise) {
    let l = layout(s, noise);
    let g = &l.geom;
    let depth = g.depth();
    let byte = |noise: &mut Noise| if extreme { noise.pick(&[0, 255]) } else { noise.next() as u8 };
    let x: Vec<u8> = (0..s.n * s.h * s.w * s.c).map(|_| byte(noise)).collect();
    let w = random_weights(s.oc as usize * depth, sparsity, extreme, noise);
    let bias: Vec<i32> = (0..s.oc).map(|_| noise.below(20_000) as i32 - 10_000).collect();
    // Powers of two make ties, which must go to even.
    let step = (depth as f32 * (1.0 - sparsity) + 1.0).sqrt() * 100.0;
    let ties = noise.below(2) == 0;
    let mult: Vec<f32> = (0..s.oc)
        .map(|_| if ties { (-step.log2().round()).exp2() } else { (noise.float() + 1.1) / step })
        .collect();
    let out_f32 = (s.n, s.h, depth as u32, s.group) == (1, 1, s.c, 1) && g.ow == s.w && noise.below(3) == 0;
    let has_residual = !out_f32 && noise.below(2) == 0;
    let zero = noise.pick(&[0, 0, 128, 255, 7]);
    let e = QEpilogue {
        x_zero: noise.pick(&[0, 0, 128, 255, 3]),
        residual_mult: if ties { 0.5 } else { noise.float().abs() * 2.0 },
        residual_zero: noise.pick(&[0, 128, 20]),
        zero,
        lo: noise.pick(&[0, zero]),
        hi: noise.pick(&[255, zero.max(100)]),
        has_residual,
        out_f32,
        table: (!out_f32 && noise.below(3) == 0).then(|| std::array::from_fn(|_| noise.next() as u8)),
        late: (has_residual && noise.below(2) == 0).then(|| random_late(ties, noise)),
        ..plain_epilogue()
    };
    let residual: Vec<u8> = (0..g.rows * g.ow * s.oc).map(|_| noise.next() as u8).collect();
    let at_end = noise.below(4) != 0;
    let mut x_buffer = Guarded::new(l.x_len, (READ_BEFORE, READ_AFTER), at_end, || noise.next() as u8);
    fill_input(s, &l, x_buffer.slice(), e.x_zero as u8, &x);
    let mut r_buffer = Guarded::new(l.r_len, (READ_BEFORE, READ_AFTER), at_end, || noise.next() as u8);
    let r_strides = [g.r_origin, g.r_image, g.r_row, g.r_pixel].map(|v| v as usize);
    let r_slice = r_buffer.slice();
    for_each_element([s.n, g.oh, g.ow, s.oc], r_strides, |i, at| r_slice[at] = residual[i]);

    let want = integer_reference(s, g, &e, (&x, &w, &bias, &mult), &residual);
    let weights = ConvWeights::Int8 { w: &w, bias: &bias, mult: &mult, x_zero: e.x_zero };
    for kernel in kernels.iter().filter(|k| (k.supports)(g)) {
        // Packed for one image, run for all of them.
        let packed = (kernel.pack)(&weights, &ConvGeom { rows: g.oh, ..*g });
        assert_eq!(packed.nonzeros, w.iter().filter(|&&v| v != 0).count() as u64);
        assert!(packed.nonzeros <= packed.slots, "{}", kernel.name);
        let what = format!("{s:?} sparsity {sparsity}");
        let pointers = (x_buffer.start.cast_const(), r_buffer.start.cast_const());
        match &want {
            Integer::Bytes(want) => check_tiles(
                kernel,
                &what,
                (&l, &e),
                &packed.bytes,
                pointers,
                noise,
                |_, a: u8, b| a == b,
                want,
            ),
            Integer::Floats(want) => {
                let same = |_, a: f32, b: f32| a.to_bits() == b.to_bits();
                check_tiles(kernel, &what, (&l, &e), &packed.bytes, pointers, noise, same, want)
            }
        }
    }
}

fn random_late(ties: bool, noise: &mut Noise) -> op::LateAdd {
    let zero = noise.pick(&[0, 128, 255, 9]);
    let out = op::Requant { zero, lo: noise.pick(&[0, zero]), hi: noise.pick(&[255, zero.max(90)]) };
    let mult = if ties { 0.5 } else { noise.float().abs() * 1.5 };
    op::LateAdd { mult, zero: noise.pick(&[0, 128, 40]), out }
}

/// Sums for which a fused multiplication and addition of the residual would give another result.
#[test]
fn residuals_are_added_with_two_roundings() {
    let mut noise = Noise(0xf05ed);
    let e = QEpilogue { residual_mult: 0.1, has_residual: true, ..plain_epilogue() };
    let fused = |acc: i32, mult: f32, r: u8| {
        (r as f32).mul_add(e.residual_mult, acc as f32 * mult).clamp(0.0, 255.0).round_ties_even() as u8
    };
    const CHANNELS: usize = 20;
    let (mut bias, mut mult, mut residual, mut want) = (vec![], vec![], vec![], vec![]);
    for _ in 0..100_000_000 {
        let (acc, m, r) = (noise.below(100_000) as i32, noise.float().abs() * 0.002, noise.next() as u8);
        let plain = e.requant(acc, m, Some(r));
        if plain != fused(acc, m, r) {
            bias.push(acc);
            mult.push(m);
            residual.push(r);
            want.push(plain);
        }
        if want.len() == CHANNELS {
            break;
        }
    }
    assert_eq!(want.len(), CHANNELS);
    let s = shape(1, [1, 1], 1, CHANNELS as u32, [1, 1], [1, 1], 0);
    let g = dense_geometry(&s);
    let l = Layout { x_len: 1, y_len: CHANNELS, r_len: CHANNELS, inner: 0, geom: g };
    let mut x = Guarded::<u8>::new(1, (READ_BEFORE, READ_AFTER), true, || 1);
    let mut r = Guarded::<u8>::new(CHANNELS, (READ_BEFORE, READ_AFTER), true, || 1);
    r.slice().copy_from_slice(&residual);
    x.slice()[0] = 3;
    let weights = ConvWeights::Int8 { w: &[0; CHANNELS], bias: &bias, mult: &mult, x_zero: 0 };
    for kernel in runnable(&[KernelType::Int8]).iter().filter(|k| (k.supports)(&g)) {
        let packed = (kernel.pack)(&weights, &g);
        let pointers = (x.start.cast_const(), r.start.cast_const());
        let same = |_, a: u8, b: u8| a == b;
        check_tiles(kernel, "ties", (&l, &e), &packed.bytes, pointers, &mut noise, same, &want);
    }
}

/// Results far outside of u8 and of i32, above and below.
#[test]
fn extreme_sums_are_clamped() {
    const SUMS: [i32; 8] = [i32::MIN, i32::MIN + 1, -1_000_000, -1, 0, 1, 1_000_000, i32::MAX];
    const MULTS: [f32; 5] = [1e-30, 1e-6, 0.99, 3.0, 1e30];
    let (mut bias, mut mult) = (vec![], vec![]);
    for &b in &SUMS {
        for &m in &MULTS {
            bias.push(b);
            mult.push(m);
        }
    }
    let channels = bias.len();
    let s = shape(1, [1, 9], 1, channels as u32, [1, 1], [1, 1], 0);
    let g = dense_geometry(&s);
    let l = Layout { x_len: 9, y_len: 9 * channels, r_len: 9 * channels, inner: 0, geom: g };
    let x = Guarded::<u8>::new(9, (READ_BEFORE, READ_AFTER), true, || 1);
    let r = Guarded::<u8>::new(9 * channels, (READ_BEFORE, READ_AFTER), true, || 77);
    let w = vec![0; channels];
    let weights = ConvWeights::Int8 { w: &w, bias: &bias, mult: &mult, x_zero: 0 };
    let mut noise = Noise(0xe47);
    for (zero, lo, hi, has_residual) in [(0, 0, 255, false), (128, 0, 255, true), (128, 128, 200, false)] {
        let e = QEpilogue { zero, lo, hi, has_residual, residual_mult: 2.5, ..plain_epilogue() };
        let want = integer_reference(&s, &g, &e, (&[1; 9], &w, &bias, &mult), &vec![77; 9 * channels]);
        let Integer::Bytes(want) = want else { unreachable!("the epilogue asks for bytes") };
        for kernel in runnable(&[KernelType::Int8]).iter().filter(|k| (k.supports)(&g)) {
            let packed = (kernel.pack)(&weights, &g);
            let pointers = (x.start.cast_const(), r.start.cast_const());
            let same = |_, a: u8, b: u8| a == b;
            check_tiles(kernel, "extremes", (&l, &e), &packed.bytes, pointers, &mut noise, same, &want);
        }
    }
}

fn plain_epilogue() -> QEpilogue {
    QEpilogue {
        x_zero: 0,
        residual_mult: 0.0,
        residual_zero: 0,
        zero: 0,
        lo: 0,
        hi: 255,
        has_residual: false,
        out_f32: false,
        table: None,
        late: None,
        min: f32::NEG_INFINITY,
        max: f32::INFINITY,
    }
}

/// Buffers without gaps or borders, for a shape without padding.
fn dense_geometry(s: &Shape) -> ConvGeom {
    let [oh, ow] = [0, 1].map(|d| {
        let w = &s.window;
        ([s.h, s.w][d] - (w.kernel[d] - 1) * w.dilation[d] - 1) / w.stride[d] + 1
    });
    ConvGeom {
        rows: s.n * oh,
        oh,
        ow,
        oc: s.oc,
        c: s.c,
        group: s.group,
        kh: s.window.kernel[0],
        kw: s.window.kernel[1],
        sh: s.window.stride[0],
        sw: s.window.stride[1],
        dh: s.window.dilation[0],
        dw: s.window.dilation[1],
        x_origin: 0,
        x_image: s.h * s.w * s.c,
        x_row: s.w * s.c,
        x_pixel: s.c,
        y_origin: 0,
        y_image: oh * ow * s.oc,
        y_row: ow * s.oc,
        y_pixel: s.oc,
        r_origin: 0,
        r_image: oh * ow * s.oc,
        r_row: ow * s.oc,
        r_pixel: s.oc,
    }
}

enum Integer {
    Bytes(Vec<u8>),
    Floats(Vec<f32>),
}

/// `QConv`, or `QGemm` where the result is f32.
fn integer_reference(
    s: &Shape,
    g: &ConvGeom,
    e: &QEpilogue,
    (x, w, bias, mult): (&[u8], &[i8], &[i32], &[f32]),
    residual: &[u8],
) -> Integer {
    let [n, h, wd, c, o, kh, kw] = [s.n, s.h, s.w, s.c, s.oc, g.kh, g.kw].map(|d| d as usize);
    let (bias, mult) = (Tensor::from_i32(&[o], bias.to_vec()), Tensor::from_f32(&[o], mult.to_vec()));
    let out = op::Requant { zero: e.zero, lo: e.lo, hi: e.hi };
    if e.out_f32 {
        let x = Tensor::from_u8(&[wd, c], x.to_vec());
        let w = Tensor::from_i8(&[o, c], w.to_vec());
        let attr = Attr::QGemm(QGemmAttr { x_zero: e.x_zero, out: None });
        let y = (OpKind::QGemm.row().eval)(&attr, &[Some(&x), Some(&w), Some(&bias), Some(&mult)]);
        return Integer::Floats(y.expect("valid").remove(0).as_f32().expect("f32").to_vec());
    }
    let x = Tensor::from_u8(&[n, h, wd, c], x.to_vec());
    let w = Tensor::from_i8(&[o, kh, kw, c / s.group as usize], w.to_vec());
    let r = Tensor::from_u8(&[n, g.oh as usize, g.ow as usize, o], residual.to_vec());
    let attr = Attr::QConv(QConvAttr {
        conv: ConvAttr { window: s.window, group: s.group },
        x_zero: e.x_zero,
        out: Some(out),
        residual_mult: e.residual_mult,
        residual_zero: e.residual_zero,
        late: e.late,
    });
    let r = e.has_residual.then_some(&r);
    let table = e.table.map(|t| Tensor::from_u8(&[256], t.to_vec()));
    let inputs = [Some(&x), Some(&w), Some(&bias), Some(&mult), r, table.as_ref()];
    let y = (OpKind::QConv.row().eval)(&attr, &inputs);
    Integer::Bytes(y.expect("valid").remove(0).as_u8().expect("u8").to_vec())
}

#[test]
fn float_rows_stay_within_their_bound() {
    let kernels = runnable(FLOATS);
    let mut noise = Noise(0xf10a7);
    for s in shapes() {
        for sparsity in [0.0, 0.9] {
            check_float_layer(&kernels, &s, sparsity, Values::Any, &mut noise);
        }
    }
}

/// Rounding takes nothing from factors that bfloat16 holds.
#[test]
fn bf16_rows_are_as_good_as_f32_for_factors_of_8_bits() {
    let kernels = runnable(&[KernelType::Bf16]);
    let mut noise = Noise(0xbf16);
    for s in shapes() {
        check_float_layer(&kernels, &s, 0.0, Values::OfBf16, &mut noise);
        check_float_layer(&kernels, &s, 0.5, Values::Whole, &mut noise);
    }
}

/// What tensors of a float layer hold.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Values {
    Any,
    /// Numbers of 8 bits, which bfloat16 holds.
    OfBf16,
    /// Whole numbers, so small that their sums are exact.
    Whole,
}

impl Values {
    fn draw(self, noise: &mut Noise) -> f32 {
        match self {
            Values::Any => noise.float(),
            Values::OfBf16 => f32::from_bits(noise.float().to_bits() & 0xffff_0000),
            Values::Whole => noise.below(33) as f32 - 16.0,
        }
    }
}

fn check_float_layer(kernels: &[&ConvKernel], s: &Shape, sparsity: f32, values: Values, noise: &mut Noise) {
    let l = layout(s, noise);
    let g = &l.geom;
    let depth = g.depth();
    let mut floats = |n: u32| (0..n).map(|_| values.draw(noise)).collect::<Vec<f32>>();
    let (x, bias) = (floats(s.n * s.h * s.w * s.c), floats(s.oc));
    let residual = floats(g.rows * g.ow * s.oc);
    let mut w = floats(s.oc * depth as u32);
    w.iter_mut().for_each(|v| *v = if (noise.float() + 1.0) / 2.0 < sparsity { 0.0 } else { *v });
    let has_residual = noise.below(2) == 0;
    let (min, max) = noise.pick(&[(f32::NEG_INFINITY, f32::INFINITY), (0.0, f32::INFINITY), (0.0, 0.75)]);
    let e = QEpilogue { has_residual, min, max, ..plain_epilogue() };
    // All that is not data is NaN: 0 * NaN would show.
    let nan = f32::NAN.to_bits().to_le_bytes();
    let mut k = 0;
    let mut nans = move || {
        k += 1;
        nan[(k - 1) % 4]
    };
    let at_end = noise.below(4) != 0;
    let mut x_buffer = Guarded::<f32>::new(l.x_len, (READ_BEFORE, READ_AFTER), at_end, &mut nans);
    fill_input(s, &l, x_buffer.slice(), 0.0, &x);
    let mut r_buffer = Guarded::<f32>::new(l.r_len, (READ_BEFORE, READ_AFTER), at_end, &mut nans);
    let r_strides = [g.r_origin, g.r_image, g.r_row, g.r_pixel].map(|v| v as usize);
    let r_slice = r_buffer.slice();
    for_each_element([s.n, g.oh, g.ow, s.oc], r_strides, |i, at| r_slice[at] = residual[i]);

    let (want, bound) = float_reference(s, g, &e, (&x, &w, &bias), &residual);
    let roundings = bf16_roundings(s, g, &x, &w);
    let weights = ConvWeights::F32 { w: &w, bias: &bias };
    for kernel in kernels.iter().filter(|k| (k.supports)(g)) {
        let packed = (kernel.pack)(&weights, &ConvGeom { rows: g.oh, ..*g });
        assert_eq!(packed.nonzeros, w.iter().filter(|&&v| v != 0.0).count() as u64);
        let what = format!("{s:?} {values:?} sparsity {sparsity}");
        let pointers = (x_buffer.start.cast_const().cast(), r_buffer.start.cast_const().cast());
        let largest = bound.iter().copied().fold(0.0, f32::max);
        let bound = |i: usize| match (kernel.dtype, values) {
            (KernelType::Bf16, Values::Any) => bound[i] + roundings[i],
            (KernelType::Bf16, Values::Whole) => 0.0,
            _ if matches!(kernel.method, Method::Winograd(_)) => largest,
            _ => bound[i],
        };
        let close = |i: usize, a: f32, b: f32| (a - b).abs() <= bound(i);
        check_tiles(kernel, &what, (&l, &e), &packed.bytes, pointers, noise, close, &want);
    }
}

/// `FusedConv`, and for each output twice the bound of the module's head: the reference has rounding errors too.
fn float_reference(
    s: &Shape,
    g: &ConvGeom,
    e: &QEpilogue,
    (x, w, bias): (&[f32], &[f32], &[f32]),
    residual: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let [n, h, wd, c, o, kh, kw] = [s.n, s.h, s.w, s.c, s.oc, g.kh, g.kw].map(|d| d as usize);
    let eval = |x: Vec<f32>, w: Vec<f32>, bias: Vec<f32>, r: Vec<f32>, clip| {
        let x = Tensor::from_f32(&[n, h, wd, c], x);
        let w = Tensor::from_f32(&[o, kh, kw, c / s.group as usize], w);
        let r = Tensor::from_f32(&[n, g.oh as usize, g.ow as usize, o], r);
        let conv = ConvAttr { window: s.window, group: s.group };
        let inputs = [Some(&x), Some(&w), Some(&Tensor::from_f32(&[o], bias)), e.has_residual.then_some(&r)];
        let y = (OpKind::FusedConv.row().eval)(&Attr::FusedConv(FusedConvAttr { conv, clip }), &inputs);
        y.expect("valid").remove(0).as_f32().expect("f32").to_vec()
    };
    let clip = ClipAttr { min: e.min, max: e.max };
    let want = eval(x.to_vec(), w.to_vec(), bias.to_vec(), residual.to_vec(), clip);
    let abs = |v: &[f32]| v.iter().map(|f| f.abs()).collect::<Vec<_>>();
    let wide = ClipAttr { min: f32::NEG_INFINITY, max: f32::INFINITY };
    let sums = eval(abs(x), abs(w), abs(bias), abs(residual), wide);
    let unit = 1.01 * (g.depth() as f32 + 3.0) * 2f32.powi(-24);
    (want, sums.iter().map(|s| 2.0 * unit * s).collect())
}

/// What rounding both factors of every product to bfloat16 does to each output, at most.
fn bf16_roundings(s: &Shape, g: &ConvGeom, x: &[f32], w: &[f32]) -> Vec<f32> {
    let abs = |v: &[f32]| v.iter().map(|f| f.abs()).collect::<Vec<_>>();
    let zeros = |n: u32| vec![0.0; n as usize];
    let products = (&abs(x)[..], &abs(w)[..], &zeros(s.oc)[..]);
    let (sums, _) = float_reference(s, g, &plain_epilogue(), products, &zeros(g.rows * g.ow * s.oc));
    sums.iter().map(|sum| 2.01 / 256.0 * sum).collect()
}

#[test]
fn lane_gather_packs_every_weight_once() {
    let mut noise = Noise(0x9ac4);
    for s in shapes().iter().filter(|s| s.group == 1) {
        for sparsity in SPARSITIES {
            let g = layout(s, &mut noise).geom;
            let w = random_weights(s.oc as usize * g.depth(), sparsity, false, &mut noise);
            let (bias, mult) = (vec![0; s.oc as usize], vec![1.0; s.oc as usize]);
            let weights = ConvWeights::Int8 { w: &w, bias: &bias, mult: &mult, x_zero: 0 };
            let packed = lane_gather::pack(&weights, &g);
            assert_eq!(lane_gather::unpack(&packed.bytes, &g), w, "{s:?} sparsity {sparsity}");
            let data = packed::read(b"LG16", &g, &packed.bytes).data;
            assert!(data.chunks_exact(128).all(|step| step[..64].iter().all(|&i| i < 64)));
            // Fewer steps than the fullest lanes need, or empty ones, would be a wrong schedule.
            let fullest = w.chunks(16 * g.depth()).map(|group| {
                let lanes = group.chunks(g.depth()).map(|row| row.iter().filter(|&&v| v != 0).count());
                lanes.max().unwrap_or(0).div_ceil(4) as u64
            });
            assert!(packed.steps >= fullest.sum(), "{s:?}");
            assert!(data.chunks_exact(128).all(|step| step[64..].iter().any(|&v| v != 0)), "{s:?}");
        }
    }
}

#[test]
fn lane_gather_fills_its_slots_as_well_as_the_study_says() {
    let mut noise = Noise(0x5107);
    let s = shape(1, [1, 1], 768, 768, [1, 1], [1, 1], 0);
    for (sparsity, efficiency) in [(0.5, 0.92), (0.8, 0.80), (0.9, 0.66), (0.95, 0.48)] {
        let g = layout(&s, &mut noise).geom;
        let w = random_weights(768 * 768, sparsity, true, &mut noise);
        let weights = ConvWeights::Int8 { w: &w, bias: &[0; 768], mult: &[1.0; 768], x_zero: 0 };
        let packed = lane_gather::pack(&weights, &g);
        let got = packed.nonzeros as f64 / packed.slots as f64;
        println!("sparsity {sparsity}: {got:.3} of the slots hold a weight");
        assert!(got >= efficiency, "sparsity {sparsity}: {got}");
    }
}

#[test]
fn names_are_unique_and_follow_the_grammar() {
    for (i, k) in CONV_KERNELS.iter().enumerate() {
        assert!(CONV_KERNELS[..i].iter().all(|other| other.name != k.name));
        let parts: Vec<&str> = k.name.split('_').collect();
        let dtype = if k.dtype == KernelType::Int8 { "i8" } else { "f32" };
        // The row of instruction sets does not say that bfloat16 is there.
        let isa = if k.dtype == KernelType::Bf16 { "avx512bf16" } else { k.isa.name() };
        assert_eq!((parts[1], parts[3]), (dtype, isa), "{}", k.name);
    }
}

#[test]
fn blocks_are_even_and_cover_a_range_once() {
    for len in 0..100 {
        for most in 1..20 {
            let all: Vec<_> = blocks(7..7 + len, most).collect();
            assert_eq!(all.iter().map(|b| b.len() as u32).sum::<u32>(), len);
            assert!(all.windows(2).all(|w| w[0].end == w[1].start && w[0].len() - w[1].len() <= 1));
            assert!(all.iter().all(|b| !b.is_empty() && b.len() as u32 <= most));
            assert_eq!(all.len() as u32, len.div_ceil(most));
        }
    }
}

/// The planner may put y where the residual lies, if it is f32.
#[test]
fn f32_residuals_may_be_overwritten() {
    let mut noise = Noise(0x1991ace);
    for s in shapes() {
        let mut l = layout(&s, &mut noise);
        let g = &mut l.geom;
        (g.r_origin, g.r_image, g.r_row, g.r_pixel) = (g.y_origin, g.y_image, g.y_row, g.y_pixel);
        let g = &l.geom;
        let mut x = Guarded::<f32>::new(l.x_len, (READ_BEFORE, READ_AFTER), true, || 0);
        x.slice().iter_mut().for_each(|v| *v = noise.float());
        let r: Vec<f32> = (0..l.y_len).map(|_| noise.float()).collect();
        let w: Vec<f32> = (0..s.oc as usize * g.depth()).map(|_| noise.float()).collect();
        let weights = ConvWeights::F32 { w: &w, bias: &vec![0.5; s.oc as usize] };
        let e = QEpilogue { has_residual: true, ..plain_epilogue() };
        let tile = Tile { rows: 0..g.rows, cols: 0..g.ow, ocs: 0..g.oc };
        for kernel in runnable(FLOATS).iter().filter(|k| (k.supports)(g)) {
            let packed = (kernel.pack)(&weights, g);
            let run = |over: bool| {
                let [mut y, residual] = [0; 2].map(|_| {
                    let mut b = Guarded::<f32>::new(l.y_len, (READ_BEFORE, READ_AFTER), true, || 0);
                    b.slice().copy_from_slice(&r);
                    b
                });
                let from = if over { y.start } else { residual.start };
                let operands = Operands {
                    geom: *g,
                    epilogue: e,
                    packed: &packed.bytes,
                    x: x.start.cast_const().cast(),
                    r: from.cast_const().cast(),
                    y: y.start.cast(),
                    tile: tile.clone(),
                };
                // SAFETY: the processor has the row's instructions, the buffers hold the layout.
                unsafe { (kernel.run)(&operands) };
                y.slice().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
            };
            assert!(run(true) == run(false), "{} {s:?}", kernel.name);
        }
    }
}
