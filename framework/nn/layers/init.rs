//! First values of parameters.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal, Uniform};

/// Makes parameters: where they live and the seeded stream their values come from.
pub struct Init {
    pub device: Device,
    /// Absent: all are zero.
    rng: Option<ChaCha8Rng>,
}

impl Init {
    pub fn new(device: &Device, seed: u64) -> Init {
        Init { device: device.clone(), rng: Some(ChaCha8Rng::seed_from_u64(seed)) }
    }

    /// Weights that are zero, for networks that are only counted, or given others' weights at once: large ones take no
    /// time then.
    pub fn zeros(device: &Device) -> Init {
        Init { device: device.clone(), rng: None }
    }

    fn param<const D: usize>(&self, values: Vec<f32>, shape: [usize; D]) -> Param<Tensor<D>> {
        Param::from_data(TensorData::new(values, shape), &self.device)
    }

    fn drawn<const D: usize>(&mut self, from: impl Distribution<f32>, shape: [usize; D]) -> Param<Tensor<D>> {
        match &mut self.rng {
            Some(rng) => {
                let values = (0..shape.iter().product()).map(|_| from.sample(rng)).collect();
                self.param(values, shape)
            }
            None => Param::from_tensor(Tensor::zeros(shape, &self.device)),
        }
    }

    pub fn constant<const D: usize>(&self, value: f32, shape: [usize; D]) -> Param<Tensor<D>> {
        self.param(vec![value; shape.iter().product()], shape)
    }

    /// Normal around 0.
    pub fn normal<const D: usize>(&mut self, deviation: f32, shape: [usize; D]) -> Param<Tensor<D>> {
        self.drawn(Normal::new(0.0, deviation).expect("a finite deviation"), shape)
    }

    /// Normal with variance 2 / fan_out (He et al., 2015), as torchvision's ResNets; [out, in / groups, kh, kw].
    pub fn he_normal(&mut self, groups: usize, shape: [usize; 4]) -> Param<Tensor<4>> {
        let [o, _, kh, kw] = shape;
        self.normal((2.0 / (o / groups * kh * kw) as f32).sqrt(), shape)
    }

    /// Uniform in ± 1 / sqrt(fan_in), as PyTorch's Linear.
    pub fn fan_in_uniform<const D: usize>(&mut self, fan_in: usize, shape: [usize; D]) -> Param<Tensor<D>> {
        let bound = 1.0 / (fan_in as f32).sqrt();
        self.drawn(Uniform::new_inclusive(-bound, bound).expect("a finite bound"), shape)
    }
}
