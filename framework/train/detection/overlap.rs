//! Complete IoU (Zheng et al., 2020, arXiv:1911.08287): intersection over union, less the squared distance of the middles
//! in units of the common rectangle's diagonal, less a term for the difference of the aspects.

use std::f64::consts::PI;
use std::ops::{Add, Div, Mul, Sub};

/// A number and its derivatives by the four corners.
#[derive(Clone, Copy, Debug)]
struct Dual {
    v: f64,
    d: [f64; 4],
}

const EPSILON: f64 = 1e-7;

/// Of a box and the truth (left, top, right, bottom), and its derivatives by the box's corners. The weight of the aspects'
/// term is taken as a constant, as the paper does.
pub fn complete_iou(found: [f64; 4], truth: [f64; 4]) -> (f64, [f64; 4]) {
    let mut corner = 0;
    let [x0, y0, x1, y1] = found.map(|v| {
        let mut d = [0.0; 4];
        d[corner] = 1.0;
        corner += 1;
        Dual { v, d }
    });
    let [tx0, ty0, tx1, ty1] = truth.map(constant);
    let (w, h) = (x1 - x0, y1 - y0);
    let (tw, th) = (truth[2] - truth[0], truth[3] - truth[1]);
    let common = (x1.min(tx1) - x0.max(tx0)).positive() * (y1.min(ty1) - y0.max(ty0)).positive();
    let union = w * h + constant(tw * th) - common + constant(EPSILON);
    let iou = common / union;
    let (cw, ch) = (x1.max(tx1) - x0.min(tx0), y1.max(ty1) - y0.min(ty0));
    let diagonal = cw * cw + ch * ch + constant(EPSILON);
    let (dx, dy) = (tx0 + tx1 - x0 - x1, ty0 + ty1 - y0 - y1);
    let distance = (dx * dx + dy * dy) * constant(0.25);
    let turn = constant((tw / (th + EPSILON)).atan()) - (w / (h + constant(EPSILON))).atan();
    let aspect = turn * turn * constant(4.0 / (PI * PI));
    let weight = aspect.v / (aspect.v - iou.v + 1.0 + EPSILON);
    let result = iou - distance / diagonal - aspect * constant(weight);
    (result.v, result.d)
}

fn constant(v: f64) -> Dual {
    Dual { v, d: [0.0; 4] }
}

impl Dual {
    fn chain(self, v: f64, slope: f64) -> Dual {
        Dual { v, d: self.d.map(|d| d * slope) }
    }

    fn min(self, other: Dual) -> Dual {
        if self.v <= other.v { self } else { other }
    }

    fn max(self, other: Dual) -> Dual {
        if self.v >= other.v { self } else { other }
    }

    fn positive(self) -> Dual {
        if self.v > 0.0 { self } else { constant(0.0) }
    }

    fn atan(self) -> Dual {
        self.chain(self.v.atan(), 1.0 / (1.0 + self.v * self.v))
    }

    fn with(self, other: Dual, v: f64, of: impl Fn(f64, f64) -> f64) -> Dual {
        Dual { v, d: std::array::from_fn(|i| of(self.d[i], other.d[i])) }
    }
}

impl Add for Dual {
    type Output = Dual;
    fn add(self, b: Dual) -> Dual {
        self.with(b, self.v + b.v, |da, db| da + db)
    }
}

impl Sub for Dual {
    type Output = Dual;
    fn sub(self, b: Dual) -> Dual {
        self.with(b, self.v - b.v, |da, db| da - db)
    }
}

impl Mul for Dual {
    type Output = Dual;
    // The rule of the derivative.
    #[allow(clippy::suspicious_arithmetic_impl)]
    fn mul(self, b: Dual) -> Dual {
        self.with(b, self.v * b.v, |da, db| da * b.v + db * self.v)
    }
}

impl Div for Dual {
    type Output = Dual;
    // The rule of the derivative.
    #[allow(clippy::suspicious_arithmetic_impl)]
    fn div(self, b: Dual) -> Dual {
        self.with(b, self.v / b.v, |da, db| (da - db * self.v / b.v) / b.v)
    }
}
