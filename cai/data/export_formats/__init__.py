"""The formats of exports: one module each, which declares `FORMAT`. See `cai.core.plugins` for those of other packages."""

from cai.core.plugins import EXPORT_FORMAT, Registry
from cai.data.export_format import ExportFormat

EXPORT_FORMATS: Registry[ExportFormat] = Registry(EXPORT_FORMAT, ExportFormat)
