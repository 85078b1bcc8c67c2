"""What the paper says, as expressions over a bundle's own ids: the values that test_paper.py holds the configurations to.

Change a value in a configuration on purpose, and its row here is the place to say why. Expressions are MONAI's, with the
functions of test_paper.py; ``@train#trainer`` is the trainer as it will run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

METHODS = "Khader et al., Scientific Reports 13, 7303 (2023), Methods"
CODE = "the implementation published with the paper, as held against ours"
ESSER = "Esser et al., Taming Transformers, CVPR 2021, whose defaults the paper keeps"
HO = "Ho et al., Denoising Diffusion Probabilistic Models, NeurIPS 2020"
NICHOL = "Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, ICML 2021"
VIDEO = "Ho et al., Video diffusion models, NeurIPS 2022, whose network the paper takes over"
ROLE = "what the parts are for, whatever their values"


class Row(NamedTuple):
    """One fact: an expression over the ids of a configuration, its value, and its source."""

    id: str
    value: Any
    source: str


class Dataset(NamedTuple):
    """One line of the paper's table of data sets."""

    image_size: list[int]  # voxels H, W, D
    compression: list[int]
    latent: list[int]
    batch: int  # of the second stage


DATASETS = {
    ("adni_ldm", ""): Dataset([64, 64, 64], [2, 2, 2], [8, 32, 32, 32], 10),
    ("duke_ldm", ""): Dataset([256, 256, 32], [8, 8, 8], [8, 32, 32, 4], 40),
    ("duke_ldm", "low_compression.yaml"): Dataset([256, 256, 32], [4, 4, 4], [8, 64, 64, 8], 10),
    ("lidc_ldm", ""): Dataset([128, 128, 128], [8, 8, 8], [8, 16, 16, 16], 50),
    ("lidc_ldm", "low_compression.yaml"): Dataset([128, 128, 128], [4, 4, 4], [8, 32, 32, 32], 10),
    ("mrnet_ldm", ""): Dataset([256, 256, 32], [8, 8, 8], [8, 32, 32, 4], 40),
    ("mrnet_ldm", "low_compression.yaml"): Dataset([256, 256, 32], [4, 4, 4], [8, 64, 64, 8], 10),
}
LDM = sorted({name for name, _ in DATASETS})

FIRST_STAGE_NETWORK = [
    Row("@autoencoder_def.encoder.conv_in.conv.out_channels", 16, METHODS),
    Row("@autoencoder_def.encoder.conv_in.conv.kernel_size", (3, 3, 3), ESSER),
    Row("@autoencoder_def.encoder.stages[0].conv.kernel_size", (4, 4, 4), CODE),
    Row("@autoencoder_def.encoder.stages[0].conv.out_channels", 32, CODE),
    Row("@autoencoder_def.encoder.norm_out.num_groups", 32, ESSER),
    Row("@autoencoder_def.encoder.norm_out.eps", 1e-6, ESSER),
    Row("@autoencoder_def.codebook.num_codes", 16384, METHODS),
    Row("@autoencoder_def.codebook.dim", 8, METHODS),
    Row("@autoencoder_def.codebook.decay", 0.99, CODE),
    Row("@autoencoder_def.codebook.commitment_weight", 0.25, ESSER),
    Row("@autoencoder_def.codebook.restart_threshold", 1.0, CODE),
]
SECOND_STAGE_NETWORK = [
    Row("@denoiser_def.first.out_channels == @latent_shape[1]", True, METHODS),
    Row("[level.block1.conv1.out_channels // @latent_shape[1] for level in @denoiser_def.down]", [1, 2, 4, 8], METHODS),
    Row("@denoiser_def.first.in_channels == @code_channels", True, METHODS),  # no patches
    Row("@denoiser_def.first.kernel_size", (7, 7), VIDEO),
    Row("@denoiser_def.down[0].depth.num_heads", 8, METHODS),
    Row("@denoiser_def.down[0].spatial.num_heads", 8, METHODS),
    Row("@denoiser_def.down[0].depth.head_channels", 32, METHODS),
    Row("@denoiser_def.down[0].spatial.head_channels", 32, METHODS),
    Row("@denoiser_def.down[0].block1.norm1.groups", 8, VIDEO),
    Row("@denoiser_def.position.bias.num_embeddings", 32, VIDEO),
    Row("len(@denoiser_def.position.buckets) - 1", 32, VIDEO),
    Row("@scheduler.num_train_timesteps", 300, METHODS),
    Row("len(@network_def.alphas_cumprod)", 300, METHODS),
    Row("cosine_error(@scheduler.alphas_cumprod) < 1e-3", True, NICHOL),
    Row("cosine_error(@network_def.alphas_cumprod) < 1e-3", True, NICHOL),
    Row("round(float(@scheduler.betas[-1]), 6)", 0.9999, CODE),
    Row("float(@network_def.latent_scaling.bound)", 1.0, METHODS),  # min-max, until weights or training bring another
    Row("@scheduler.prediction_type", "epsilon", METHODS),
    Row("int(@network_def.prediction)", 0, METHODS),  # the noise, as the generator keeps it among its weights
]
OPTIMISING = [  # in every training
    Row("@train#trainer.optimizer is @optimizer", True, ROLE),
    Row("@train#trainer.loss_function is @loss", True, ROLE),
    Row("@lr_scheduler.optimizer is @optimizer", True, ROLE),
    Row("only(@validate#handlers, 'BestWeights') is not None", True, ROLE),
]
TRAINING = [  # in every training whose lowest loss is the best
    *OPTIMISING,
    Row("@validate#evaluator.metric_cmp_fn(1.0, 2.0)", True, ROLE),
    Row("@validate#evaluator.metric_cmp_fn(2.0, 1.0)", False, ROLE),
]
SWIN_NETWORK = [  # the network that is trained is the one that is validated and published
    Row("kind(@network_def)", "ScriptableSwinUNETR", METHODS),
    Row("kind(@train#trainer.optimizer)", "AdamW", METHODS),
    Row("trained(@train#trainer.optimizer) == weights(@network)", True, ROLE),
    Row("@train#trainer.network is @network", True, ROLE),
    Row("@validate#evaluator.network is @network", True, ROLE),
    Row("only(@validate#handlers, 'BestWeights').module is @network_def", True, ROLE),
    Row("rescaled(@preprocessing)", (-1.0, 1.0), METHODS),
]
TABLE = {
    "train_autoencoder.yaml": [
        *FIRST_STAGE_NETWORK,
        *TRAINING,
        *(
            Row(expression.format(discriminator), value, source)
            for discriminator in ("@slice_discriminator_def", "@volume_discriminator_def")
            for expression, value, source in (
                ("[conv.out_channels for conv in convolutions({})]", [64, 128, 256, 512, 1], CODE),
                ("{{conv.kernel_size[0] for conv in convolutions({})}}", {4}, CODE),
                ("[conv.stride[0] for conv in convolutions({})]", [2, 2, 2, 1, 1], CODE),
                ("[conv.padding[0] for conv in convolutions({})]", [2] * 5, CODE),
                ("{{act.negative_slope for act in parts({}, 'LeakyReLU')}}", {0.2}, CODE),
                ("len(list(parts({}, 'BatchNorm2d', 'BatchNorm3d')))", 3, CODE),
            )
        ),
        Row("convolutions(@slice_discriminator_def)[0].weight.ndim - 2", 2, METHODS),
        Row("convolutions(@volume_discriminator_def)[0].weight.ndim - 2", 3, METHODS),
        Row("@train#trainer.slice_discriminator is @slice_discriminator", True, ROLE),
        Row("@train#trainer.volume_discriminator is @volume_discriminator", True, ROLE),
        Row("@train#trainer.loss_function.l1_weight", 4.0, METHODS),
        Row("@train#trainer.loss_function.perceptual_weight", 4.0, METHODS),
        Row("@train#trainer.loss_function.slice_weight", 1.0, METHODS),
        Row("@train#trainer.loss_function.volume_weight", 1.0, METHODS),
        Row("@train#trainer.loss_function.feature_matching_weight", 4.0, METHODS),
        Row("@train#trainer.schedule.generator_weight(4999)", 0.0, METHODS),
        Row("@train#trainer.schedule.generator_weight(5000) > 0", True, METHODS),
        Row("@train#trainer.gradient_clip", 1.0, CODE),
        Row("kind(@train#trainer.optimizer)", "Adam", METHODS),
        Row("@train#trainer.optimizer.defaults['betas']", (0.5, 0.9), ESSER),
        Row("@train#trainer.optimizer.defaults['lr']", 1.875e-5, METHODS),  # 3e-4 x 2/4 x 1/8
        Row("kind(@train#trainer.discriminator_optimizer)", "Adam", METHODS),
        Row("@train#trainer.discriminator_optimizer.defaults['betas']", (0.5, 0.9), ESSER),
        Row("@train#trainer.discriminator_optimizer.defaults['lr']", 1.875e-5, METHODS),
        Row("trained(@train#trainer.optimizer) == weights(@autoencoder)", True, ROLE),
        Row(
            "trained(@train#trainer.discriminator_optimizer) "
            "== weights(@slice_discriminator) | weights(@volume_discriminator)",
            True,
            ROLE,
        ),
        Row("@train#dataloader.batch_size", 2, METHODS),
        Row("@patch_size == @image_size", True, METHODS),  # whole volumes
        Row("only(@train#dataset.transform.transforms, 'RandFlipd').prob", 0.5, METHODS),
        Row(
            "only(@train#dataset.transform.transforms, 'RandFlipd').flipper.spatial_axis == @flip_axis",
            True,
            ROLE,
        ),
        Row("len(of_kind(@validate#dataset.transform.transforms, 'RandFlipd'))", 0, ROLE),
        Row("rescaled(@preprocessing)", (-1.0, 1.0), METHODS),
        Row("@validate#evaluator.network is @autoencoder", True, ROLE),
        Row("only(@validate#handlers, 'BestWeights').module is @autoencoder_def", True, ROLE),
    ],
    "train.yaml": [
        *FIRST_STAGE_NETWORK,
        *SECOND_STAGE_NETWORK,
        *TRAINING,
        Row("@train#trainer.loss_function.norm", "l1", METHODS),
        Row("float(@train#trainer.loss_function(torch.tensor([3.0, 0.0]), torch.zeros(2)))", 1.5, METHODS),
        Row("@latent_scaling", "min_max", METHODS),
        Row("@train#trainer.prepare_batch.latent_scaling is @generator.latent_scaling", True, ROLE),
        Row("@validate#evaluator.prepare_batch.latent_scaling is @generator.latent_scaling", True, ROLE),
        Row("@train#trainer.prepare_batch.stratified", False, HO),  # each row by itself
        Row("learns_the_noise(@train#trainer.prepare_batch)", True, METHODS),
        Row("learns_the_noise(@validate#evaluator.prepare_batch)", True, METHODS),
        Row("kind(@train#trainer.optimizer)", "Adam", METHODS),
        Row("@train#trainer.optimizer.defaults['lr']", 1e-4, METHODS),
        Row("@train#trainer.optimizer.defaults['betas']", (0.9, 0.999), CODE),
        Row("@train#trainer.optimizer.defaults['weight_decay']", 0.0, CODE),
        Row("only(@train#handlers, 'ClipGradients').max_norm", None, CODE),
        Row("(@lr_scheduler.warmup, @lr_scheduler.final)", (0, 1.0), METHODS),  # a constant rate
        Row("trained(@train#trainer.optimizer) == weights(@denoiser)", True, ROLE),
        Row("@train#trainer.network is @denoiser", True, ROLE),
        Row("@train#trainer.accumulation_steps", 2, METHODS),
        Row("only(@train#handlers, 'ExponentialMovingAverage').gamma", None, CODE),
        Row("only(@train#handlers, 'AverageSnapshots').averages", [], CODE),
        Row("only(@train#handlers, 'ExponentialMovingAverage').decay", 0.995, CODE),
        Row("only(@train#handlers, 'ExponentialMovingAverage').every", 10, CODE),
        Row("only(@train#handlers, 'ExponentialMovingAverage').start", 2000, CODE),
        Row("only(@train#handlers, 'ExponentialMovingAverage').source is @denoiser", True, ROLE),
        Row("only(@train#handlers, 'ExponentialMovingAverage').averaged is @generator.denoiser", True, ROLE),
        Row("@validate#evaluator.network is @generator.denoiser", True, HO),  # the average, not what is trained
        Row("@generator.denoiser is not @denoiser", True, ROLE),
        Row("only(@validate#handlers, 'BestWeights').module is @generator", True, ROLE),
        Row("only(@train#dataset.transform.transforms, 'RandLoadLatentd').transform.prob", 0.5, METHODS),
        Row("only(@validate#dataset.transform.transforms, 'RandLoadLatentd').transform.prob", 0.0, ROLE),
        Row("rescaled(@preprocessing)", (-1.0, 1.0), METHODS),
    ],
    "evaluate.yaml": [
        *FIRST_STAGE_NETWORK,
        *SECOND_STAGE_NETWORK,
        Row("rescaled(@preprocessing)", (-1.0, 1.0), METHODS),
    ],
    "inference.json": [
        *FIRST_STAGE_NETWORK,
        *SECOND_STAGE_NETWORK,
        Row("@network_def.timesteps.tolist()", list(range(299, -1, -1)), HO),  # ancestral, over all steps
        Row("@network_def.eta", 1.0, HO),
    ],
}
PROBABILITIES = [1.0, 0.5, 0.1, 0.3, 0.3, 0.2, 0.3]  # of the flip for each axis: its own
SWIN = {
    "swin_unetr_pretrain": [
        *TRAINING,
        *SWIN_NETWORK,
        Row("@train#trainer.optimizer.defaults['lr']", 1e-3, METHODS),
        Row("@train#trainer.optimizer.defaults['weight_decay']", 0.01, METHODS),
        Row("@train#trainer.loss_function.l1_weight", 1.0, METHODS),
        Row("@train#trainer.loss_function.ms_ssim_weight", 1.0, METHODS),
        Row("@train#trainer.loss_function.rest_weight", 1.0, METHODS),  # L1 of all voxels
        Row("@validate#evaluator.loss_function is @loss", True, ROLE),
        Row("transformed(@validate#key_metric['val_loss'], {'loss': 3.0, 'ms_ssim': 5.0})", 3.0, ROLE),
        Row("@train#trainer.loss_function.ms_ssim.c1", (0.01 * 2) ** 2, ROLE),  # of the range 2, from -1 to 1
        Row("[flip.prob for flip in of_kind(@train#augmentation, 'RandFlipd')]", [0.5, 0.5], CODE),
        Row("[flip.flipper.spatial_axis for flip in of_kind(@train#augmentation, 'RandFlipd')]", [0, 1], METHODS),
        Row("len(of_kind(@train#dataset.transform.transforms, 'RandFlipd'))", 2, METHODS),
        Row("len(of_kind(@train#dataset.transform.transforms, 'RandMaskPatchesd'))", 1, METHODS),
        Row("len(of_kind(@validate#dataset.transform.transforms, 'RandFlipd'))", 0, ROLE),
        Row("len(of_kind(@validate#dataset.transform.transforms, 'RandMaskPatchesd'))", 1, METHODS),
    ],
    "swin_unetr_finetune": [
        *OPTIMISING,
        *SWIN_NETWORK,
        Row("kind(@train#trainer.loss_function)", "DiceCELoss", METHODS),
        Row("@train#trainer.loss_function.lambda_dice", 1.0, CODE),
        Row("@train#trainer.loss_function.lambda_ce", 1.0, CODE),
        Row("@train#trainer.loss_function.dice.softmax", True, ROLE),
        Row("@train#trainer.loss_function.dice.to_onehot_y", True, ROLE),
        Row("only(@train#cropping, 'RandCropByPosNegLabeld').keys", ("image", "label"), ROLE),
        Row(
            "[kind(step.transform) for step in of_kind(@train#augmentation, 'RandTorchIOd')]",
            [
                "RandomFlip",
                "RandomAffine",
                "RandomGhosting",
                "RandomBiasField",
                "RandomGamma",
                "RandomBlur",
                "RandomNoise",
            ],
            METHODS,
        ),
        # as the project chose them: the paper names the transforms, not how often or how strong
        Row(
            "[step.transform.probability for step in of_kind(@train#augmentation, 'RandTorchIOd')]", PROBABILITIES, ROLE
        ),
        *(
            Row(f"only([step.transform for step in @train#augmentation[:7]], '{transform}').{attribute}", value, ROLE)
            for transform, attribute, value in (
                ("RandomFlip", "axes", (0,)),
                ("RandomFlip", "flip_probability", 0.5),
                ("RandomAffine", "scales", (0.9, 1.1, 0.9, 1.1, 0.9, 1.1)),
                ("RandomAffine", "isotropic", False),
                ("RandomAffine", "degrees", (-10, 10, -10, 10, -10, 10)),
                ("RandomAffine", "translation", (-5, 5, -5, 5, -5, 5)),
                ("RandomAffine", "default_pad_value", "minimum"),
                ("RandomGhosting", "num_ghosts_range", (2, 6)),
                ("RandomGhosting", "intensity_range", (0.1, 0.4)),
                ("RandomBiasField", "coefficients_range", (-0.3, 0.3)),
                ("RandomBiasField", "order", 3),
                ("RandomGamma", "log_gamma_range", (-0.3, 0.3)),
                ("RandomBlur", "std_ranges", (0.0, 1.0) * 3),
                ("RandomNoise", "mean_range", (0.0, 0.0)),
                ("RandomNoise", "std_range", (0.0, 0.05)),
            )
        ),
        Row("{step.label_keys for step in of_kind(@train#augmentation, 'RandTorchIOd')}", {("label",)}, ROLE),
        Row("rescaled(@train#augmentation)", (-1.0, 1.0), ROLE),
        Row("len(of_kind(@train#dataset.transform.transforms, 'RandTorchIOd'))", 7, METHODS),
        Row("len(of_kind(@validate#dataset.transform.transforms, 'RandTorchIOd'))", 0, ROLE),
        Row("@validate#evaluator.metric_cmp_fn(2.0, 1.0)", True, ROLE),  # the highest Dice is the best
        Row("@validate#evaluator.metric_cmp_fn(1.0, 2.0)", False, ROLE),
    ],
}


def rows_of(bundle: str, file: str) -> list[Row]:
    """The rows that hold for a configuration file of a bundle."""
    return SWIN[bundle] if bundle in SWIN else TABLE[file]
