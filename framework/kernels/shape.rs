//! Shapes of a 2-D convolution.

/// `x[n,h,w,c]` * `w[o, c / groups, kh, kw]` -> `y[n,oh,ow,o]`. Fields are in elements; pairs are (vertical, horizontal).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub c: usize,
    pub o: usize,
    pub kh: usize,
    pub kw: usize,
    pub stride: [usize; 2],
    /// Zero rows above and columns to the left of the image.
    pub pad_begin: [usize; 2],
    /// Zero rows below and columns to the right.
    pub pad_end: [usize; 2],
    pub dilation: [usize; 2],
    pub groups: usize,
    pub oh: usize,
    pub ow: usize,
}

/// How a window moves over an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub stride: [usize; 2],
    pub pad_begin: [usize; 2],
    pub pad_end: [usize; 2],
    pub dilation: [usize; 2],
    pub groups: usize,
}

impl Window {
    /// Equal stride and padding on all sides, one group.
    pub fn new(stride: usize, pad: usize) -> Window {
        Window { stride: [stride; 2], pad_begin: [pad; 2], pad_end: [pad; 2], dilation: [1; 2], groups: 1 }
    }

    pub fn grouped(self, groups: usize) -> Window {
        Window { groups, ..self }
    }
}

impl ConvShape {
    /// `x` is [n, c, h, w] and `w` [o, c / groups, kh, kw], the order in which tensors state them.
    ///
    /// # Panics
    /// If the weight does not fit the input or the window does not fit the padded image.
    pub fn new(x: [usize; 4], w: [usize; 4], window: Window) -> ConvShape {
        let [n, c, h, width] = x;
        let [o, c_group, kh, kw] = w;
        let Window { stride, pad_begin, pad_end, dilation, groups } = window;
        assert!(groups > 0 && c == c_group * groups, "a weight {w:?} in {groups} groups, for {c} channels");
        assert!(o.is_multiple_of(groups), "{o} output channels in {groups} groups");
        assert!(kh > 0 && kw > 0 && stride[0] > 0 && stride[1] > 0 && dilation[0] > 0 && dilation[1] > 0);
        let places = |size: usize, k: usize, axis: usize| {
            let padded = size + pad_begin[axis] + pad_end[axis];
            let reach = dilation[axis] * (k - 1) + 1;
            assert!(padded >= reach, "a window of {reach} does not fit a padded image of {padded}");
            (padded - reach) / stride[axis] + 1
        };
        let (oh, ow) = (places(h, kh, 0), places(width, kw, 1));
        ConvShape { n, h, w: width, c, o, kh, kw, stride, pad_begin, pad_end, dilation, groups, oh, ow }
    }

    pub fn x_len(&self) -> usize {
        self.n * self.h * self.w * self.c
    }

    pub fn y_len(&self) -> usize {
        self.n * self.oh * self.ow * self.o
    }

    pub fn w_len(&self) -> usize {
        self.o * (self.c / self.groups) * self.kh * self.kw
    }

    /// One filter per channel.
    pub fn is_depthwise(&self) -> bool {
        self.groups == self.c && self.o == self.c && self.groups > 1
    }

    /// A matrix product over pixels.
    pub fn is_pointwise(&self) -> bool {
        self.kh == 1
            && self.kw == 1
            && self.stride == [1, 1]
            && self.pad_begin == [0, 0]
            && self.pad_end == [0, 0]
            && self.groups == 1
    }

    /// Multiplications and additions of one pass, counted as 2 per weight and place.
    pub fn flops(&self) -> f64 {
        2.0 * (self.n * self.oh * self.ow) as f64 * self.w_len() as f64
    }
}
