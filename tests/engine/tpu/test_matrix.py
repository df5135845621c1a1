"""Operations of dots and convolutions in HLO text, against closed forms."""

from engine.tpu.matrix import Product, product_of
from engine.tpu.program import Computation, read_program


def product(left: str, right: str, line: str) -> Product:
    lines = ["ENTRY %main (a: x, b: x) -> x {", f"  %a = {left} parameter(0)", f"  %b = {right} parameter(1)"]
    scope: Computation = read_program([*lines, f"  %p = {line}", "}"]).computations["main"]
    return product_of(scope["p"], scope)


def test_a_dot() -> None:
    found = product(
        "f32[7,5,3]{2,1,0}",
        "f32[7,3,11]{2,1,0}",
        "f32[7,5,11]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, "
        "rhs_contracting_dims={1}, operand_precision={highest,highest}",
    )
    assert found == Product(2 * 7 * 5 * 11 * 3, "f32 x f32", "highest")


def test_a_convolution_leaves_out_the_padding() -> None:
    found = product(
        "bf16[2,3,8,8]{3,2,1,0}",
        "bf16[4,3,3,3]{3,2,1,0}",
        "bf16[2,4,8,8]{3,2,1,0} convolution(%a, %b), window={size=3x3 pad=1_1x1_1}, dim_labels=bf01_oi01->bf01",
    )
    # along an axis 8 outputs x 3 places, less one at either end
    assert found == Product(2 * 2 * 4 * 3 * 22 * 22, "bf16 x bf16", "default")


def test_a_strided_convolution_and_the_gradient_of_its_input_cost_the_same() -> None:
    forward = product(
        "f32[2,3,9,9]{3,2,1,0}",
        "f32[4,3,3,3]{3,2,1,0}",
        "f32[2,4,4,4]{3,2,1,0} convolution(%a, %b), window={size=3x3 stride=2x2}, dim_labels=bf01_oi01->bf01",
    )
    backward = product(
        "f32[2,4,4,4]{3,2,1,0}",
        "f32[4,3,3,3]{3,2,1,0}",
        "f32[2,3,9,9]{3,2,1,0} convolution(%a, %b), window={size=3x3 pad=2_2x2_2 lhs_dilate=2x2 rhs_reversal=1x1}, "
        "dim_labels=bf01_io01->bf01",
    )
    assert forward.flops == backward.flops == 2 * 2 * 4 * 3 * 12 * 12


def test_a_grouped_convolution() -> None:
    found = product(
        "f32[2,8,5,5]{3,2,1,0}",
        "f32[8,1,1,1]{3,2,1,0}",
        "f32[2,8,5,5]{3,2,1,0} convolution(%a, %b), window={size=1x1}, dim_labels=bf01_oi01->bf01, "
        "feature_group_count=8",
    )
    assert found.flops == 2 * 2 * 8 * 25


def test_a_batch_of_products_as_a_tpu_writes_it() -> None:
    found = product(
        "bf16[16,64,196]{2,1,0}",
        "bf16[16,64,196]{2,1,0}",
        "bf16[16,196,196]{1,2,0} convolution(%a, %b), window={size=16 stride=15 lhs_dilate=16}, "
        "dim_labels=0fb_0io->0bf",
    )
    assert found.flops == 2 * 16 * 196 * 196 * 64
