// Grafana's own types of boards, as a board's JSON has to have them: enums are their values, and options and custom
// fields those of the panel's plug-in. What a Prometheus query may hold is in no published package: it is as Grafana's
// Prometheus data source has it.
import type { Dashboard, FieldConfig, Panel, RowPanel } from '@grafana/schema';
import type { Options as BarGauge } from '@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen.d.ts';
import type { Options as Stat } from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen.d.ts';
import type { Options as Table } from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen.d.ts';
import type {
  FieldConfig as TimeSeriesField,
  Options as TimeSeries,
} from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen.d.ts';

type Plain<T> = T extends string ? `${T}` : T extends number | boolean | null | undefined ? T | (T extends number ? number : never)
  : T extends Array<infer U> ? Array<Plain<U>> : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;

interface Target {
  refId: string;
  datasource: { type: 'prometheus'; uid: string };
  expr: string;
  legendFormat: string;
  instant: boolean;
  range: boolean;
  format: 'time_series' | 'table' | 'heatmap';
  editorMode: 'code' | 'builder';
}

type Typed<Name extends string, Options, Custom> = Omit<Plain<Panel>, 'type' | 'options' | 'fieldConfig' | 'targets'> & {
  type: Name;
  options: Partial<Plain<Options>>;
  fieldConfig: { defaults: Omit<Plain<FieldConfig>, 'custom'> & { custom?: Plain<Custom> }; overrides: never[] };
  targets: Target[];
};

export type Board = Omit<Plain<Dashboard>, 'panels'> & {
  panels: Array<
    | (Omit<Plain<RowPanel>, 'type' | 'panels'> & { type: 'row'; panels: never[] })
    | Typed<'timeseries', TimeSeries, TimeSeriesField>
    | Typed<'stat', Stat, never>
    | Typed<'bargauge', BarGauge, never>
    | Typed<'table', Table, never>
  >;
};
