//! Attributes as fields of an op's line: what is written and what is read stand side by side, variant by variant.

use super::quote;
use crate::ids::BodyId;
use crate::op::*;
use crate::params::{Params, Usual, params_of};
use crate::tensor::DType;

pub(super) type Fields = Vec<(&'static str, String)>;

fn list<T: ToString>(items: &[T]) -> String {
    format!("[{}]", items.iter().map(T::to_string).collect::<Vec<_>>().join(","))
}

/// What is printed of an attribute; [`attr_from`] reads the same fields.
pub(super) fn attr_fields(kind: OpKind, attr: &Attr) -> Fields {
    let mut f = Fields::new();
    match attr {
        Attr::None => {}
        Attr::Conv(c) => conv_fields(&mut f, c),
        Attr::Pool(p) => {
            window_fields(&mut f, &p.window);
            flag(&mut f, "ceil_mode", p.ceil_mode);
            flag(&mut f, "count_include_pad", p.count_include_pad);
        }
        Attr::Gemm(g) => {
            unless(&mut f, "alpha", f32_text(g.alpha), g.alpha.to_bits() == 1f32.to_bits());
            unless(&mut f, "beta", f32_text(g.beta), g.beta.to_bits() == 1f32.to_bits());
            flag(&mut f, "trans_a", g.trans_a);
            flag(&mut f, "trans_b", g.trans_b);
        }
        Attr::Clip(c) => f.extend([("min", f32_text(c.min)), ("max", f32_text(c.max))]),
        Attr::Epsilon(e) => f.push(("epsilon", f32_text(*e))),
        Attr::Axis(a) => f.push(("axis", a.to_string())),
        Attr::Perm(p) => f.push(("perm", list(p.as_slice()))),
        Attr::Reduce(r) => {
            f.push(("axes", list(r.axes.as_slice())));
            flag(&mut f, "keep_dims", r.keep_dims);
        }
        Attr::FusedConv(c) => {
            conv_fields(&mut f, &c.conv);
            unless(&mut f, "min", f32_text(c.clip.min), c.clip.min == f32::NEG_INFINITY);
            unless(&mut f, "max", f32_text(c.clip.max), c.clip.max == f32::INFINITY);
        }
        Attr::QConv(q) => {
            conv_fields(&mut f, &q.conv);
            f.push(("x_zero", q.x_zero.to_string()));
            if let Some(out) = &q.out {
                requant_fields(&mut f, out);
            }
            unless(&mut f, "residual_mult", f32_text(q.residual_mult), q.residual_mult.to_bits() == 0);
            unless(&mut f, "residual_zero", q.residual_zero.to_string(), q.residual_zero == 0);
            if let Some(late) = &q.late {
                f.extend([("late_mult", f32_text(late.mult)), ("late_zero", late.zero.to_string())]);
                f.push(("late_out", list(&[late.out.zero, late.out.lo, late.out.hi])));
            }
        }
        Attr::QGemm(q) => {
            f.push(("x_zero", q.x_zero.to_string()));
            if let Some(out) = &q.out {
                requant_fields(&mut f, out);
            }
        }
        Attr::QAdd(q) => {
            f.extend([("a_mult", f32_text(q.a_mult)), ("a_zero", q.a_zero.to_string())]);
            f.extend([("b_mult", f32_text(q.b_mult)), ("b_zero", q.b_zero.to_string())]);
            requant_fields(&mut f, &q.out);
        }
        Attr::QPool(q) => {
            f.extend([("x_zero", q.x_zero.to_string()), ("mult", f32_text(q.mult))]);
            requant_fields(&mut f, &q.out);
        }
        Attr::Norm(n) => f.extend([("axis", n.axis.to_string()), ("epsilon", f32_text(n.epsilon))]),
        Attr::Cast(dtype) => f.push(("to", dtype.to_string())),
        Attr::Axes(a) => f.push(("axes", list(a.as_slice()))),
        Attr::AddNorm(n) => {
            f.extend([("a_mult", f32_text(n.a.mult)), ("a_zero", n.a.zero.to_string())]);
            f.extend([("b_mult", f32_text(n.b.mult)), ("b_zero", n.b.zero.to_string())]);
            f.extend([("epsilon", f32_text(n.epsilon)), ("y_mult", f32_text(n.y_mult))]);
            flag(&mut f, "keep", n.keep);
            if let Some(out) = &n.out {
                requant_fields(&mut f, out);
            }
        }
        Attr::QAttention(a) => {
            f.extend([("heads", a.heads.to_string()), ("q_zero", a.q_zero.to_string())]);
            f.extend([("k_zero", a.k_zero.to_string()), ("v_zero", a.v_zero.to_string())]);
            f.extend([("score_mult", f32_text(a.score_mult)), ("p_mult", f32_text(a.p_mult))]);
            f.push(("out_mult", f32_text(a.out_mult)));
            requant_fields(&mut f, &a.out);
        }
        Attr::QMul(q) => {
            f.extend([("a_zero", q.a_zero.to_string()), ("b_zero", q.b_zero.to_string())]);
            f.push(("mult", f32_text(q.mult)));
            requant_fields(&mut f, &q.out);
        }
        Attr::Resize(r) => f.push(("scale", list(&r.scale))),
        Attr::Spatial(a) => {
            let usual = SpatialAttr::default();
            let n = usize::from(a.rank).min(3);
            let lists = [
                ("kernel", a.kernel, [u32::MAX; 3]),
                ("stride", a.stride, usual.stride),
                ("dilation", a.dilation, usual.dilation),
                ("before", a.before, usual.before),
                ("after", a.after, usual.after),
                ("output_padding", a.output_padding, usual.output_padding),
            ];
            for (key, sizes, usual) in lists {
                unless(&mut f, key, list(&sizes[..n]), sizes[..n] == usual[..n]);
            }
            unless(&mut f, "group", a.group.to_string(), a.group == usual.group);
            unless(&mut f, "p", a.p.to_string(), a.p == usual.p);
            flag(&mut f, "ceil_mode", a.ceil_mode);
            flag(&mut f, "count_include_pad", a.count_include_pad);
            flag(&mut f, "column_major", a.column_major);
        }
        Attr::Equation(e) => f.push(("equation", quote(e.as_str()))),
        Attr::If(a) => {
            f.push(("then", a.then_body.0.to_string()));
            f.extend(a.else_body.map(|body| ("else", body.0.to_string())));
        }
        Attr::Loop(a) => f.extend([("body", a.body.0.to_string()), ("states", a.states.to_string())]),
        Attr::Params(p) => {
            for (param, &bits) in params_of(kind).iter().zip(&p.bits) {
                unless(&mut f, param.name, param_text(param.usual, bits), bits == param.usual.bits());
            }
        }
    }
    f
}

fn param_text(usual: Usual, bits: i32) -> String {
    match usual {
        Usual::Int(_) => bits.to_string(),
        Usual::Flag(_) => (bits != 0).to_string(),
        Usual::Float(_) => f32_text(f32::from_bits(bits as u32)),
        Usual::Choice(names) => names.get(bits as usize).unwrap_or(&"invalid").to_string(),
    }
}

fn unless(f: &mut Fields, key: &'static str, value: String, usual: bool) {
    if !usual {
        f.push((key, value));
    }
}

fn flag(f: &mut Fields, key: &'static str, on: bool) {
    unless(f, key, "true".to_string(), !on);
}

fn window_fields(f: &mut Fields, w: &Window) {
    f.push(("kernel", list(&w.kernel)));
    unless(f, "stride", list(&w.stride), w.stride == [1, 1]);
    unless(f, "dilation", list(&w.dilation), w.dilation == [1, 1]);
    unless(f, "pads", list(&w.pads), w.pads == [0; 4]);
}

fn conv_fields(f: &mut Fields, c: &ConvAttr) {
    window_fields(f, &c.window);
    unless(f, "group", c.group.to_string(), c.group == 1);
}

fn requant_fields(f: &mut Fields, q: &Requant) {
    f.extend([("zero", q.zero.to_string()), ("lo", q.lo.to_string()), ("hi", q.hi.to_string())]);
}

/// Fields as read; what no attribute takes is an error.
pub(super) struct Read<'a> {
    pub(super) fields: Vec<(&'a str, &'a str)>,
}

impl<'a> Read<'a> {
    fn take(&mut self, key: &str) -> Option<&'a str> {
        let at = self.fields.iter().position(|(k, _)| *k == key)?;
        Some(self.fields.remove(at).1)
    }

    fn number<T: std::str::FromStr>(&mut self, key: &str, usual: Option<T>) -> Result<T, String> {
        match self.take(key) {
            Some(text) => text.parse().map_err(|_| format!("{key}={text} is not a number that fits")),
            None => usual.ok_or_else(|| format!("{key} is missing")),
        }
    }

    fn float(&mut self, key: &str, usual: Option<f32>) -> Result<f32, String> {
        match self.take(key) {
            Some(text) => f32_from(text).ok_or_else(|| format!("{key}={text} is not a number")),
            None => usual.ok_or_else(|| format!("{key} is missing")),
        }
    }

    fn flag(&mut self, key: &str) -> Result<bool, String> {
        match self.take(key) {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(text) => Err(format!("{key}={text} must be true or false")),
        }
    }

    fn list<T: std::str::FromStr>(&mut self, key: &str) -> Result<Option<Vec<T>>, String> {
        let Some(text) = self.take(key) else { return Ok(None) };
        let inner = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        let items: Option<Vec<T>> = match inner {
            Some("") => Some(Vec::new()),
            Some(inner) => inner.split(',').map(|t| t.trim().parse().ok()).collect(),
            None => None,
        };
        items.map(Some).ok_or_else(|| format!("{key}={text} must be a list of numbers that fit, as [1,2]"))
    }

    fn array<const N: usize>(&mut self, key: &str, usual: Option<[u32; N]>) -> Result<[u32; N], String> {
        match self.list::<u32>(key)? {
            Some(items) => items.try_into().map_err(|_| format!("{key} must have {N} numbers")),
            None => usual.ok_or_else(|| format!("{key} is missing")),
        }
    }

    fn axes(&mut self, key: &str) -> Result<Axes, String> {
        let items = self.list::<i64>(key)?.ok_or_else(|| format!("{key} is missing"))?;
        Axes::new(&items).ok_or_else(|| format!("{key} must be at most eight small numbers"))
    }

    fn affine(&mut self, mult: &str, zero: &str) -> Result<Affine, String> {
        Ok(Affine { mult: self.float(mult, None)?, zero: self.number(zero, None)? })
    }

    fn window(&mut self) -> Result<Window, String> {
        Ok(Window {
            kernel: self.array("kernel", None)?,
            stride: self.array("stride", Some([1, 1]))?,
            dilation: self.array("dilation", Some([1, 1]))?,
            pads: self.array("pads", Some([0; 4]))?,
        })
    }

    fn conv(&mut self) -> Result<ConvAttr, String> {
        Ok(ConvAttr { window: self.window()?, group: self.number("group", Some(1))? })
    }

    fn requant(&mut self) -> Result<Requant, String> {
        Ok(Requant {
            zero: self.number("zero", None)?,
            lo: self.number("lo", None)?,
            hi: self.number("hi", None)?,
        })
    }

    fn optional_requant(&mut self) -> Result<Option<Requant>, String> {
        if self.fields.iter().any(|(k, _)| *k == "zero") { self.requant().map(Some) } else { Ok(None) }
    }

    fn spatial(&mut self) -> Result<SpatialAttr, String> {
        let kernel = self.list::<u32>("kernel")?.ok_or("kernel is missing")?;
        let n = kernel.len();
        let rank =
            u8::try_from(n).ok().filter(|n| (1..=3).contains(n)).ok_or("kernel must have 1 to 3 numbers")?;
        let mut a = SpatialAttr { rank, ..SpatialAttr::default() };
        a.kernel[..n].copy_from_slice(&kernel);
        for (key, slots) in [
            ("stride", &mut a.stride),
            ("dilation", &mut a.dilation),
            ("before", &mut a.before),
            ("after", &mut a.after),
            ("output_padding", &mut a.output_padding),
        ] {
            match self.list::<u32>(key)? {
                Some(sizes) if sizes.len() == n => slots[..n].copy_from_slice(&sizes),
                Some(_) => return Err(format!("{key} must have {n} numbers")),
                None => {}
            }
        }
        a.group = self.number("group", Some(a.group))?;
        a.p = self.number("p", Some(a.p))?;
        a.ceil_mode = self.flag("ceil_mode")?;
        a.count_include_pad = self.flag("count_include_pad")?;
        a.column_major = self.flag("column_major")?;
        Ok(a)
    }

    fn params(&mut self, kind: OpKind) -> Result<Params, String> {
        let mut params = Params::usual(kind);
        for (param, slot) in params_of(kind).iter().zip(&mut params.bits) {
            let Some(text) = self.take(param.name) else { continue };
            let bits = match param.usual {
                Usual::Int(_) => text.parse().ok(),
                Usual::Flag(_) => text.parse().ok().map(i32::from as fn(bool) -> i32),
                Usual::Float(_) => f32_from(text).map(|v| v.to_bits() as i32),
                Usual::Choice(names) => names.iter().position(|n| *n == text).map(|i| i as i32),
            };
            *slot = bits.ok_or_else(|| format!("{}={text} is not one of its values", param.name))?;
        }
        Ok(params)
    }

    fn late_add(&mut self) -> Result<Option<LateAdd>, String> {
        let Some(out) = self.list::<i32>("late_out")? else { return Ok(None) };
        let [zero, lo, hi] = out[..] else { return Err("late_out must have 3 numbers".to_string()) };
        let (mult, own_zero) = (self.float("late_mult", None)?, self.number("late_zero", None)?);
        Ok(Some(LateAdd { mult, zero: own_zero, out: Requant { zero, lo, hi } }))
    }
}

/// The attribute of an op of `kind` from its fields.
pub(super) fn attr_from(kind: OpKind, r: &mut Read<'_>) -> Result<Attr, String> {
    Ok(match kind.row().attr {
        "Params" => Attr::Params(r.params(kind)?),
        "Spatial" => Attr::Spatial(r.spatial()?),
        "Equation" => {
            let text = r.take("equation").and_then(|t| t.strip_prefix('"')?.strip_suffix('"'));
            let equation = text.and_then(Equation::new);
            Attr::Equation(equation.ok_or("equation must be a short list of letters in double quotes")?)
        }
        "If" => {
            let then_body = BodyId(r.number("then", None)?);
            let has_else = r.fields.iter().any(|(k, _)| *k == "else");
            let else_body = if has_else { Some(BodyId(r.number("else", None)?)) } else { None };
            Attr::If(IfAttr { then_body, else_body })
        }
        "Loop" => {
            let body = BodyId(r.number("body", None)?);
            Attr::Loop(LoopAttr { body, states: r.number("states", None)? })
        }
        "Conv" => Attr::Conv(r.conv()?),
        "Pool" => Attr::Pool(PoolAttr {
            window: r.window()?,
            ceil_mode: r.flag("ceil_mode")?,
            count_include_pad: r.flag("count_include_pad")?,
        }),
        "Gemm" => Attr::Gemm(GemmAttr {
            alpha: r.float("alpha", Some(1.0))?,
            beta: r.float("beta", Some(1.0))?,
            trans_a: r.flag("trans_a")?,
            trans_b: r.flag("trans_b")?,
        }),
        "Clip" => Attr::Clip(ClipAttr { min: r.float("min", None)?, max: r.float("max", None)? }),
        "Epsilon" => Attr::Epsilon(r.float("epsilon", None)?),
        "Axis" => Attr::Axis(r.number("axis", None)?),
        "Perm" => Attr::Perm(r.axes("perm")?),
        "Reduce" => Attr::Reduce(ReduceAttr { axes: r.axes("axes")?, keep_dims: r.flag("keep_dims")? }),
        "FusedConv" => Attr::FusedConv(FusedConvAttr {
            conv: r.conv()?,
            clip: ClipAttr {
                min: r.float("min", Some(f32::NEG_INFINITY))?,
                max: r.float("max", Some(f32::INFINITY))?,
            },
        }),
        "QConv" => Attr::QConv(QConvAttr {
            conv: r.conv()?,
            x_zero: r.number("x_zero", None)?,
            out: r.optional_requant()?,
            residual_mult: r.float("residual_mult", Some(0.0))?,
            residual_zero: r.number("residual_zero", Some(0))?,
            late: r.late_add()?,
        }),
        "QGemm" => Attr::QGemm(QGemmAttr { x_zero: r.number("x_zero", None)?, out: r.optional_requant()? }),
        "QAdd" => Attr::QAdd(QAddAttr {
            a_mult: r.float("a_mult", None)?,
            a_zero: r.number("a_zero", None)?,
            b_mult: r.float("b_mult", None)?,
            b_zero: r.number("b_zero", None)?,
            out: r.requant()?,
        }),
        "QPool" => Attr::QPool(QPoolAttr {
            x_zero: r.number("x_zero", None)?,
            mult: r.float("mult", None)?,
            out: r.requant()?,
        }),
        "Norm" => Attr::Norm(NormAttr { axis: r.number("axis", None)?, epsilon: r.float("epsilon", None)? }),
        "Cast" => {
            let name = r.take("to").ok_or("to is missing")?;
            let dtype = DType::ALL.into_iter().find(|d| d.name() == name);
            Attr::Cast(dtype.ok_or_else(|| format!("to={name} is no element type"))?)
        }
        "Axes" => Attr::Axes(r.axes("axes")?),
        "AddNorm" => {
            let (a, b) = (r.affine("a_mult", "a_zero")?, r.affine("b_mult", "b_zero")?);
            let (epsilon, y_mult) = (r.float("epsilon", None)?, r.float("y_mult", None)?);
            let keep = r.flag("keep")?;
            let has_out = r.fields.iter().any(|(k, _)| *k == "zero");
            let out = if has_out { Some(r.requant()?) } else { None };
            Attr::AddNorm(AddNormAttr { a, b, epsilon, y_mult, out, keep })
        }
        "QAttention" => Attr::QAttention(QAttentionAttr {
            heads: r.number("heads", None)?,
            q_zero: r.number("q_zero", None)?,
            k_zero: r.number("k_zero", None)?,
            v_zero: r.number("v_zero", None)?,
            score_mult: r.float("score_mult", None)?,
            p_mult: r.float("p_mult", None)?,
            out_mult: r.float("out_mult", None)?,
            out: r.requant()?,
        }),
        "QMul" => Attr::QMul(QMulAttr {
            a_zero: r.number("a_zero", None)?,
            b_zero: r.number("b_zero", None)?,
            mult: r.float("mult", None)?,
            out: r.requant()?,
        }),
        "Resize" => Attr::Resize(ResizeAttr { scale: r.array("scale", None)? }),
        _ => Attr::None,
    })
}

/// The shortest decimal that reads back as the same bits; not a number as its bits.
pub(super) fn f32_text(x: f32) -> String {
    if x.is_nan() { format!("0x{:08x}", x.to_bits()) } else { format!("{x:?}") }
}

pub(super) fn f32_from(text: &str) -> Option<f32> {
    match text.strip_prefix("0x") {
        Some(bits) => u32::from_str_radix(bits, 16).ok().map(f32::from_bits),
        None => text.parse().ok(),
    }
}
