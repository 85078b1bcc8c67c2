"""Web pages that need nothing but a browser: tables with floors and intervals, volumes to scroll through, plots."""

from medical_diffusion_components.pages.dot_plot import dot_plot
from medical_diffusion_components.pages.page import (
    Gallery,
    PageCase,
    PageRow,
    PageVolume,
    html_table,
    strip_plot,
    table_section,
    write_page,
)

__all__ = [
    "Gallery",
    "PageCase",
    "PageRow",
    "PageVolume",
    "dot_plot",
    "html_table",
    "strip_plot",
    "table_section",
    "write_page",
]
