//! Modules whose parameter names the derive cannot give.

/// `impl Module` for a struct of modules whose paths are not field names: `self` is one that Rust has taken.
///
/// ```text
/// named_module!(Attention { inner => "self", output => "output" });
/// ```
#[macro_export]
macro_rules! named_module {
    ($type:ident { $($field:ident => $name:literal),+ $(,)? }) => {
        impl burn::module::Module for $type {
            fn visit<V: burn::module::ModuleVisitor>(&self, visitor: &mut V) {
                let container = concat!("Struct:", stringify!($type));
                $(
                    visitor.enter_module($name, container);
                    self.$field.visit(visitor);
                    visitor.exit_module($name, container);
                )+
            }

            fn map<M: burn::module::ModuleMapper>(self, mapper: &mut M) -> Self {
                let container = concat!("Struct:", stringify!($type));
                $(
                    mapper.enter_module($name, container);
                    let $field = self.$field.map(mapper);
                    mapper.exit_module($name, container);
                )+
                $type { $($field),+ }
            }

            fn to_device(self, device: &burn::tensor::Device) -> Self {
                $type { $($field: self.$field.to_device(device)),+ }
            }

            fn fork(self, device: &burn::tensor::Device) -> Self {
                $type { $($field: self.$field.fork(device)),+ }
            }

            fn collect_devices(&self, devices: burn::module::Devices) -> burn::module::Devices {
                $(let devices = self.$field.collect_devices(devices);)+
                devices
            }

            fn materialize(self) -> Self {
                $type { $($field: self.$field.materialize()),+ }
            }

            fn valid(&self) -> Self {
                $type { $($field: self.$field.valid()),+ }
            }

            fn train(self) -> Self {
                $type { $($field: self.$field.train()),+ }
            }
        }

        $crate::display_by_name!($type);
    };
}

/// `impl Module` for an enum of modules of which a value is exactly one: it adds nothing to their paths.
///
/// ```text
/// one_of_modules!(Network { ResNet, Bert });
/// ```
#[macro_export]
macro_rules! one_of_modules {
    ($type:ident { $($variant:ident),+ $(,)? }) => {
        impl burn::module::Module for $type {
            fn visit<V: burn::module::ModuleVisitor>(&self, visitor: &mut V) {
                match self { $($type::$variant(m) => m.visit(visitor)),+ }
            }

            fn map<M: burn::module::ModuleMapper>(self, mapper: &mut M) -> Self {
                match self { $($type::$variant(m) => $type::$variant(m.map(mapper))),+ }
            }

            fn to_device(self, device: &burn::tensor::Device) -> Self {
                match self { $($type::$variant(m) => $type::$variant(m.to_device(device))),+ }
            }

            fn fork(self, device: &burn::tensor::Device) -> Self {
                match self { $($type::$variant(m) => $type::$variant(m.fork(device))),+ }
            }

            fn collect_devices(&self, devices: burn::module::Devices) -> burn::module::Devices {
                match self { $($type::$variant(m) => m.collect_devices(devices)),+ }
            }

            fn materialize(self) -> Self {
                match self { $($type::$variant(m) => $type::$variant(m.materialize())),+ }
            }

            fn valid(&self) -> Self {
                match self { $($type::$variant(m) => $type::$variant(m.valid())),+ }
            }

            fn train(self) -> Self {
                match self { $($type::$variant(m) => $type::$variant(m.train())),+ }
            }
        }

        $crate::display_by_name!($type);
    };
}

/// What burn shows of a module that it does not look into.
#[macro_export]
macro_rules! display_by_name {
    ($type:ident) => {
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(stringify!($type))
            }
        }

        impl burn::module::ModuleDisplayDefault for $type {
            fn content(&self, content: burn::module::Content) -> Option<burn::module::Content> {
                content.add_formatted(&stringify!($type).to_string()).optional()
            }
        }

        impl burn::module::ModuleDisplay for $type {}
    };
}
