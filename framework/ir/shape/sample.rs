//! Ops that sample images: resizing, grids, regions.

use super::{
    Facts, Inputs, axis_index, expect_dims, expect_like, input, known_floats, list_len, number, one,
    optional, rank, show, sizes, typed,
};
use crate::op::Attr;
use crate::tensor::{DType, Dim};

/// What Interpolate does along each dimension of x: the size of the result, and the scale.
pub struct Resized {
    pub sizes: Vec<usize>,
    pub scales: Vec<f64>,
}

/// `floor(size * scale)`, as f32 numbers multiply.
fn scaled(size: u64, scale: f32) -> Result<u64, String> {
    let n = (size as f32 * scale).floor();
    if !(scale > 0.0 && n < 1e15) {
        return Err(format!("a scale of {scale} cannot be"));
    }
    Ok(n as u64)
}

/// Sizes and scales of a resize whose operands are known. `policy`: stretch, or keep the ratio within or beyond sizes.
pub fn resized(
    dims: &[u64],
    axes: &[usize],
    scales: Option<&[f32]>,
    wanted: Option<&[u64]>,
    policy: usize,
) -> Result<Resized, String> {
    let mut out: Vec<u64> = dims.to_vec();
    let mut ratio = vec![1.0f64; dims.len()];
    let counts = |n: usize| match n == axes.len() {
        true => Ok(()),
        false => Err(format!("{n} scales or sizes for {} axes", axes.len())),
    };
    match (scales, wanted) {
        (Some(scales), None) => {
            counts(scales.len())?;
            for (&axis, &scale) in axes.iter().zip(scales) {
                out[axis] = scaled(dims[axis], scale)?;
                ratio[axis] = scale.into();
            }
        }
        (None, Some(wanted)) => {
            counts(wanted.len())?;
            let own = axes.iter().zip(wanted).map(|(&axis, &size)| size as f64 / dims[axis].max(1) as f64);
            let common = match policy {
                1 => Some(own.clone().fold(f64::INFINITY, f64::min)),
                2 => Some(own.clone().fold(0.0, f64::max)),
                _ => None,
            };
            for ((&axis, &size), own) in axes.iter().zip(wanted).zip(own) {
                ratio[axis] = common.unwrap_or(own);
                out[axis] = common.map_or(size, |c| (c * dims[axis] as f64 + 0.5).floor() as u64);
            }
        }
        _ => return Err("takes either scales or sizes".to_string()),
    }
    let sizes = out.iter().map(|&n| usize::try_from(n).map_err(|_| "a size is too large".to_string()));
    Ok(Resized { sizes: sizes.collect::<Result<_, _>>()?, scales: ratio })
}

/// x, region of interest, scales or sizes, and the axes that these are of.
pub fn interpolate(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let numbers = attr.numbers::<8>()?;
    let x = input(inputs, 0)?;
    if x.dtype == DType::Bool {
        return Err("input 0 is bool, it must be a number".to_string());
    }
    let (scales, wanted) = (optional(inputs, 2), optional(inputs, 3));
    let mut axes: Vec<usize> = (0..x.dims.len()).collect();
    if let Some(list) = optional(inputs, 4) {
        let Some(list) = list.ints() else { return one(x.dtype, vec![Dim::Unknown; x.dims.len()]) };
        axes = list.iter().map(|&axis| axis_index(axis, x.dims.len())).collect::<Result<_, _>>()?;
    }
    for (i, list) in [(2, &scales), (3, &wanted)] {
        if let Some(list) = list {
            list_len(i, list)?;
        }
    }
    let scales_known = scales.as_ref().map(known_floats);
    let wanted_known = wanted.as_ref().map(|w| w.ints());
    let fixed: Option<Vec<u64>> = x.dims.iter().map(|d| d.fixed()).collect();
    let (Some(fixed), Some(scales), Some(wanted)) = (
        fixed,
        scales_known.map_or(Some(None), |k| k.map(Some)),
        wanted_known.map_or(Some(None), |k| k.map(Some)),
    ) else {
        // What scales make of a dimension of known size is known, and dimensions that stay do.
        let scales = scales.as_ref().and_then(known_floats);
        let scale = |i: usize| axes.iter().position(|&a| a == i).map(|at| scales.as_ref()?.get(at).copied());
        let dim = |(i, &dim): (usize, &Dim)| match (scale(i), dim.fixed()) {
            (None, _) | (Some(Some(1.0)), _) => Ok(dim),
            (Some(Some(scale)), Some(n)) => scaled(n, scale).map(Dim::Fixed),
            _ => Ok(Dim::Unknown),
        };
        return one(x.dtype, x.dims.iter().enumerate().map(dim).collect::<Result<_, String>>()?);
    };
    let wanted = wanted.map(|w| sizes(3, &w)).transpose()?;
    let r = resized(&fixed, &axes, scales.as_deref(), wanted.as_deref(), numbers[7].choice())?;
    one(x.dtype, r.sizes.iter().map(|&n| Dim::Fixed(n as u64)).collect())
}

/// x `[N,C,..]`, grid `[N,..,rank]` of places in -1..1: x at these places.
pub fn grid_sample(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let (x, grid) = (typed(inputs, 0, DType::F32)?, typed(inputs, 1, DType::F32)?);
    let n =
        x.dims.len().checked_sub(2).filter(|n| (1..=3).contains(n)).ok_or("x must have 3 to 5 dimensions")?;
    if grid.dims.len() != n + 2 || grid.dims[n + 1] != Dim::Fixed(n as u64) {
        return Err(format!("a grid of shape {} does not fit {}", show(grid.dims), show(x.dims)));
    }
    expect_like(1, &grid, &[&x.dims[..1], &grid.dims[1..]].concat())?;
    if x.dims[2..].contains(&Dim::Fixed(0)) {
        return Err(format!("x has shape {}: there is nothing to take samples of", show(x.dims)));
    }
    one(DType::F32, [&x.dims[..2], &grid.dims[1..=n]].concat())
}

/// theta `[N,2,3]` or `[N,3,4]`, size `[N,C,..]`: a grid for GridSample.
pub fn affine_grid(_: &Attr, inputs: Inputs<'_>) -> Facts {
    let (theta, size) = (typed(inputs, 0, DType::F32)?, typed(inputs, 1, DType::I64)?);
    let [n, rows, columns] = rank(0, &theta)?;
    let rows = number(0, "the row count", rows)?;
    if !(2..=3).contains(&rows) || columns != Dim::Fixed(rows + 1) {
        return Err(format!("theta has shape {}: it must be [N,2,3] or [N,3,4]", show(theta.dims)));
    }
    if list_len(1, &size)? as u64 != rows + 2 {
        return Err(format!("the size must list {} dimensions", rows + 2));
    }
    let mut dims = vec![n];
    match size.ints() {
        Some(size) => dims.extend(sizes(1, &size[2..])?.into_iter().map(Dim::Fixed)),
        None => dims.extend(vec![Dim::Unknown; rows as usize]),
    }
    dims.push(Dim::Fixed(rows));
    one(DType::F32, dims)
}

/// x `[N,C,H,W]`, rois `[R,4]`, batch indices `[R]`.
pub fn roi_align(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let [_, height, width] = attr.numbers()?;
    let [_, c, _, _] = rank(0, &typed(inputs, 0, DType::F32)?)?;
    let rois = typed(inputs, 1, DType::F32)?;
    let [r, four] = rank(1, &rois)?;
    if four != Dim::Fixed(4) {
        return Err("a region has 4 numbers".to_string());
    }
    expect_dims(2, &typed(inputs, 2, DType::I64)?, &[r])?;
    let side =
        |v: i64| u64::try_from(v).ok().filter(|&v| v > 0).map(Dim::Fixed).ok_or("an output size is below 1");
    one(DType::F32, vec![r, c, side(height.int())?, side(width.int())?])
}

/// x `[N,C·k,L]`, image and kernel sizes: overlapping blocks summed into an image.
pub fn col2im(attr: &Attr, inputs: Inputs<'_>) -> Facts {
    let Attr::Spatial(a) = attr else { return Err(super::wrong_attr(attr)) };
    let (x, image, block) =
        (typed(inputs, 0, DType::F32)?, typed(inputs, 1, DType::I64)?, typed(inputs, 2, DType::I64)?);
    let [n, columns, _] = rank(0, &x)?;
    let count = list_len(1, &image)?;
    if count != usize::from(a.rank) || list_len(2, &block)? != count {
        return Err(format!("image and block must list {} sizes each", a.rank));
    }
    let channels = match (columns, block.ints()) {
        (Dim::Fixed(columns), Some(block)) => {
            let block = sizes(2, &block)?.iter().try_fold(1u64, |p, &s| p.checked_mul(s));
            let block = block.filter(|&b| b > 0 && columns.is_multiple_of(b));
            Dim::Fixed(columns / block.ok_or_else(|| format!("blocks do not divide {columns} rows"))?)
        }
        _ => Dim::Unknown,
    };
    let mut dims = vec![n, channels];
    match image.ints() {
        Some(image) => dims.extend(sizes(1, &image)?.into_iter().map(Dim::Fixed)),
        None => dims.extend(vec![Dim::Unknown; count]),
    }
    one(DType::F32, dims)
}
