//! Where a value's elements are: a root (buffer, caller's input, constant), an origin and strides.
//!
//! Activations of four dimensions are NHWC with a border of pixels around each image, as wide as the largest
//! padding of the convolutions that read them:
//!
//! ```text
//! image:  top lines of border            row = (left + W + right) * pixel elements
//!         left | W pixels | right        pixel >= C elements, those past C are undefined
//!         bottom lines of border         image = (top + H + bottom) * row elements
//! ```

use lacuna_ir::DType;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    Buffer(usize),
    /// The caller's memory: dense, of any alignment above the element's, nothing readable around it.
    Input(usize),
    Output(usize),
    /// A blob of the packed weights.
    Const(u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub root: Root,
    /// Elements from the root's start to the first element.
    pub origin: usize,
    pub dims: Vec<usize>,
    pub strides: Vec<usize>,
    /// Border around each image: top, left, bottom, right, in pixels; and what it holds.
    pub border: [usize; 4],
    pub fill: u8,
}

/// What a convolution asks of the value it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    pub border: [usize; 4],
    pub fill: u8,
}

impl Demand {
    pub const BARE: Demand = Demand { border: [0; 4], fill: 0 };

    /// One layout for both, if their borders do not contradict each other.
    pub fn join(self, other: Demand) -> Option<Demand> {
        if other.border == [0; 4] {
            return Some(self);
        }
        if self.border == [0; 4] {
            return Some(other);
        }
        let border = std::array::from_fn(|i| self.border[i].max(other.border[i]));
        (self.fill == other.fill).then_some(Demand { border, fill: self.fill })
    }
}

pub fn dense_strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for d in (1..dims.len()).rev() {
        strides[d - 1] = strides[d] * dims[d];
    }
    strides
}

/// Elements from pixel to pixel: whole quads for the dot products, whole registers once there are that many. Pictures keep
/// their three: a row of a first convolution's window is one run of bytes, and a quarter of it would be nothing.
pub fn pixel_stride(dtype: DType, c: usize) -> usize {
    match (dtype, c) {
        (DType::U8, 16..) => c.next_multiple_of(16),
        (DType::U8, 3) => 3,
        (DType::U8, 2..16) => c.next_multiple_of(4),
        _ => c,
    }
}

impl Place {
    pub fn dense(root: Root, dims: &[usize]) -> Place {
        Place { root, origin: 0, dims: dims.to_vec(), strides: dense_strides(dims), border: [0; 4], fill: 0 }
    }

    /// The layout of a new buffer for a value, and the buffer's length in elements. `None` when that overflows.
    pub fn in_buffer(
        buffer: usize,
        dtype: DType,
        dims: &[usize],
        demand: Option<Demand>,
    ) -> Option<(Place, usize)> {
        let mut place = Place::dense(Root::Buffer(buffer), dims);
        let demand = demand.unwrap_or(Demand::BARE);
        match *dims {
            [n, h, w, c] => {
                let [top, left, bottom, right] = demand.border;
                let pixel = pixel_stride(dtype, c);
                let row = left.checked_add(w)?.checked_add(right)?.checked_mul(pixel)?;
                let image = top.checked_add(h)?.checked_add(bottom)?.checked_mul(row)?;
                let elements = n.checked_mul(image)?;
                place.strides = vec![image, row, pixel, 1];
                place.origin = top * row + left * pixel;
                (place.border, place.fill) = (demand.border, demand.fill);
                Some((place, elements))
            }
            [m, k] => {
                let pixel = pixel_stride(dtype, k);
                place.strides = vec![pixel, 1];
                Some((place, m.checked_mul(pixel)?))
            }
            _ => Some((place, dims.iter().product())),
        }
    }

    /// Whether channels lie side by side.
    pub fn channels_last(&self) -> bool {
        self.dims.last().is_none_or(|&c| c == 1) || self.strides.last() == Some(&1)
    }

    /// `width` channels of an NHWC value, from `channel` on.
    pub fn slice(&self, channel: usize, width: usize) -> Place {
        let dims = vec![self.dims[0], self.dims[1], self.dims[2], width];
        Place { origin: self.origin + channel, dims, ..self.clone() }
    }

    /// Whether a convolution with this demand can read the value where it is.
    pub fn serves(&self, demand: Demand) -> bool {
        let wide = (0..4).all(|i| self.border[i] >= demand.border[i]);
        let filled = demand.border == [0; 4] || self.fill == demand.fill;
        matches!(self.root, Root::Buffer(_)) && self.channels_last() && wide && filled
    }

    /// The same elements as a matrix whose rows are the last dimension: rows and elements from row to row.
    pub fn as_matrix(&self) -> Option<(usize, usize)> {
        let lead = self.dims.len().checked_sub(1)?;
        let rows: usize = self.dims[..lead].iter().product();
        let dims: Vec<usize> = vec![rows, self.dims[lead]];
        let strides = restride(&self.dims, &self.strides, &dims)?;
        Some((rows, strides[0]))
    }

    /// The same elements under other dims, if strides can say so.
    pub fn reshaped(&self, dims: &[usize]) -> Option<Place> {
        let strides = restride(&self.dims, &self.strides, dims)?;
        Some(Place { dims: dims.to_vec(), strides, border: [0; 4], fill: 0, ..*self })
    }

    pub fn transposed(&self, perm: &[i64]) -> Place {
        Place {
            dims: perm.iter().map(|&a| self.dims[a as usize]).collect(),
            strides: perm.iter().map(|&a| self.strides[a as usize]).collect(),
            border: [0; 4],
            fill: 0,
            ..*self
        }
    }

    /// Strides that walk this value along `dims`, to which it broadcasts.
    pub fn broadcast_strides(&self, dims: &[usize]) -> Vec<usize> {
        let missing = dims.len() - self.dims.len();
        (0..dims.len())
            .map(|d| match d.checked_sub(missing) {
                Some(own) if self.dims[own] == dims[d] => self.strides[own],
                _ => 0,
            })
            .collect()
    }
}

/// Strides for `new` dims over the elements of `old` dims and strides, in row-major order, if there are such.
fn restride(old: &[usize], strides: &[usize], new: &[usize]) -> Option<Vec<usize>> {
    if old.contains(&0) || old.iter().product::<usize>() != new.iter().product() {
        return None;
    }
    let from: Vec<(usize, usize)> =
        old.iter().copied().zip(strides.iter().copied()).filter(|(d, _)| *d != 1).collect();
    let to: Vec<usize> = (0..new.len()).filter(|&d| new[d] != 1).collect();
    let mut out = vec![0; new.len()];
    let (mut i, mut j) = (0, 0);
    while i < from.len() {
        let (i0, j0) = (i, j);
        let (mut a, mut b) = (from[i].0, new[to[j]]);
        (i, j) = (i + 1, j + 1);
        while a != b {
            if a < b {
                a *= from[i].0;
                i += 1;
            } else {
                b *= new[to[j]];
                j += 1;
            }
        }
        if !(i0..i - 1).all(|k| from[k].1 == from[k + 1].0 * from[k + 1].1) {
            return None;
        }
        let mut stride = from[i - 1].1;
        for k in (j0..j).rev() {
            out[to[k]] = stride;
            stride *= new[to[k]];
        }
    }
    for d in (0..new.len()).rev().filter(|&d| new[d] == 1) {
        out[d] = if d + 1 < new.len() { out[d + 1] * new[d + 1] } else { 1 };
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reshapes_that_strides_can_say_are_views() {
        assert_eq!(restride(&[2, 3, 4], &[12, 4, 1], &[6, 4]), Some(vec![4, 1]));
        assert_eq!(restride(&[2, 3, 4], &[12, 4, 1], &[24]), Some(vec![1]));
        // Padded pixels cannot run together, but images of one pixel can be rows.
        assert_eq!(restride(&[2, 3, 5], &[24, 8, 1], &[2, 15]), None);
        assert_eq!(restride(&[2, 1, 1, 20], &[32, 32, 32, 1], &[2, 20]), Some(vec![32, 1]));
        assert_eq!(restride(&[2, 6], &[16, 1], &[2, 2, 3]), Some(vec![16, 3, 1]));
        assert_eq!(restride(&[4, 1], &[7, 7], &[1, 4]), Some(vec![28, 7]));
    }

    #[test]
    fn borders_and_pixels_are_laid_out_as_drawn() {
        let demand = Demand { border: [1, 2, 1, 0], fill: 9 };
        let (p, len) = Place::in_buffer(0, DType::U8, &[2, 3, 4, 17], Some(demand)).unwrap();
        assert_eq!(p.strides, [5 * 6 * 32, 6 * 32, 32, 1]);
        assert_eq!((p.origin, len), (6 * 32 + 2 * 32, 2 * 5 * 6 * 32));
        assert!(p.serves(Demand { border: [1, 1, 0, 0], fill: 9 }));
        assert!(!p.serves(Demand { border: [1, 1, 0, 0], fill: 8 }));
        assert!(p.serves(Demand { border: [0; 4], fill: 8 }));
    }
}
