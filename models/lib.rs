pub mod resnet;
